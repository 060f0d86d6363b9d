"""Gradients of where the loss is largest near the quantized weights (SAQ)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from qtool.quantizers.computed import ComputesWeight
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.interval import Interval
from qtool.quantizers.layers import QuantLayer
from qtool.quantizers.weights import WeightQuantizer
from qtool.world.world import ALONE, World

Hook = Callable[[nn.Module, tuple[object, ...], Tensor], Tensor | None]
TINY = 1e-12  # beside the norm of gradients that are all 0


class Sharpness:
    """Raises the weights that the network computes with along their gradient, for a second pass.

        e = radius g / (||g|| + 1e-12),  g the gradient of the loss by w_hat, biases and norms

    The step then follows the gradient at w_hat + e: rounding is not repeated, so that the whole
    of e counts. Scales are not raised. Float weights are raised as they are.

    Reference: SAQ, Liu et al., 2021, arXiv:2111.12273; SAM, Foret et al., 2020, arXiv:2010.01412.
    """

    def __init__(self, model: nn.Module, radius: float, world: World = ALONE) -> None:
        """Look at the quantizers of a model and at its other parameters."""
        self._radius, self._world = radius, world
        modules = list(model.modules())
        self._quantizers = [m for m in modules if isinstance(m, WeightQuantizer)]
        self._others = list(_others(modules))
        self._gradients: dict[nn.Module, Tensor] = {}

    @contextmanager
    def first(self) -> Iterator[None]:
        """Keep the gradients by quantized weights of the passes inside."""
        self._gradients = {}
        with _hooked(self._quantizers, self._keep):
            yield

    @contextmanager
    @torch.no_grad()
    def second(self) -> Iterator[None]:
        """Let the passes inside be at the raised weights."""
        found = {q: self._summed(g) for q, g in self._gradients.items()}
        others = [p for p in self._others if p.grad is not None]
        gradients = [p.grad for p in others if p.grad is not None]
        norms = torch.ops.aten._foreach_norm.Scalar([*found.values(), *gradients], 2)
        factor = self._radius / (torch.stack(norms).norm() + TINY) if norms else 0.0
        raised = {q: g * factor for q, g in found.items()}
        kept = [p.detach().clone() for p in others]
        for parameter, gradient in zip(others, gradients, strict=True):
            parameter.add_(gradient * factor)
        try:
            with _hooked(self._quantizers, partial(_raise, raised)), torch.enable_grad():
                yield
        finally:
            for parameter, was in zip(others, kept, strict=True):
                parameter.copy_(was)
            self._gradients = {}

    def _keep(self, quantizer: nn.Module, given: tuple[object, ...], w_hat: Tensor) -> None:
        if w_hat.requires_grad:
            w_hat.register_hook(partial(self._add, quantizer))

    def _add(self, quantizer: nn.Module, gradient: Tensor) -> None:
        before = self._gradients.get(quantizer)
        self._gradients[quantizer] = gradient if before is None else before + gradient

    def _summed(self, gradient: Tensor) -> Tensor:
        """Return the mean over processes, as that of parameters is."""
        if self._world.size == 1:
            return gradient
        return self._world.add_up(gradient.clone()) / self._world.size


def _others(modules: list[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield the parameters that the network computes with as they are, each once."""
    seen: set[int] = set()
    for module in modules:
        if isinstance(module, FakeQuantize | Interval):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            rounded = isinstance(module, QuantLayer) and module.weight_quantizer is not None
            latent = rounded and (name == "weight" or isinstance(module, ComputesWeight))
            if latent and name != "bias":
                continue
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


@contextmanager
def _hooked(modules: Iterable[nn.Module], hook: Hook) -> Iterator[None]:
    """Let a hook see what modules return while inside."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _raise(
    by: dict[nn.Module, Tensor], quantizer: nn.Module, given: tuple[object, ...], w_hat: Tensor
) -> Tensor:
    return w_hat + by[quantizer] if quantizer in by else w_hat
