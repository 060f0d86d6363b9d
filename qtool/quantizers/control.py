"""What moves, or is asked of, all quantizers of a model at once: schedules, steps, blends."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qtool.graph.swap import ATTRIBUTE
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.door.deployed import Prepared
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.steps import Members, modules_of
from qtool.world.passes import this_pass


def set_progress(model: nn.Module, progress: float) -> None:
    """Move every quantizer's schedules to `progress`, the share of training done, 0 to 1.

    Raises:
        ValueError: If it is no such share.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be the share of training done, 0 to 1, not {progress!r}")
    for module in model.modules():
        if isinstance(module, QuantLayer | ActivationQuantizer):
            module.set_progress(progress)


def begin_step(model: nn.Module) -> None:
    """Do what is due once per training step: fit scales again, watch weights oscillate.

    A prepared model does so by itself, at the first pass after an optimizer's step. Call this
    where no pass of the model can tell: before each step of a `torch.compile(model.forward)`, of a
    step captured in a CUDA graph, or of an optimizer that neither torch nor the version counters
    of the weights tell of. From the first call on it must be called before each step, and the
    forward pass in training is tensor arithmetic alone.
    """
    modules = modules_of(model)
    for module in modules:
        if isinstance(state := vars(module).get(ATTRIBUTE), Prepared):
            state.steps.by_hand, state.steps.share = True, this_pass().share
    Members.among(modules).begin_step()


def name_quantizers(model: nn.Module) -> None:
    """Tell every quantizer its name, and check the scales that weights are given.

    Raises:
        ModelError: If one leaves nothing of its weight; a ValueError, too.
    """
    for name, module in model.named_modules():
        if isinstance(module, FakeQuantize):
            module.place = name
    for layer in quant_layers(model).values():
        if layer.weight_quantizer is not None and not layer.weight.is_meta:
            layer.weight_quantizer.refuse_useless_scale(layer.whole_weight)


def make_traceable(model: nn.Module) -> None:
    """Keep in tensors what schedules move, so that a trace of the model follows them."""
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            module.move_in_tensors()


def compile_kernels(model: nn.Module, *, wanted: bool = True) -> None:
    """Let every quantizer compile kernels of its own, where a compiler is found, or no longer."""
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            module.compiles = wanted


def dampening_penalty(model: nn.Module) -> Tensor | None:
    """Return what oscillation dampening adds to the loss, [], or None where nothing is dampened."""
    layers = [module for module in modules_of(model) if isinstance(module, QuantLayer)]
    found = [q.penalty(layer.whole_weight) for layer in layers if (q := layer.weight_quantizer)]
    penalties = [penalty for penalty in found if penalty is not None]
    return torch.stack(penalties).sum() if penalties else None


@contextmanager
def in_float(model: nn.Module) -> Iterator[None]:
    """Let values and weights through as they are while inside: the float network, as it is now."""
    quantizers = [module for module in model.modules() if isinstance(module, FakeQuantize)]
    before = [quantizer.passes_on for quantizer in quantizers]
    for quantizer in quantizers:
        quantizer.passes_on = True
    try:
        yield
    finally:
        for quantizer, was in zip(quantizers, before, strict=True):
            quantizer.passes_on = was


@contextmanager
def without_blends(model: nn.Module) -> Iterator[None]:
    """Let blended tensors be quantized in full while inside, as if alpha were 1."""
    alphas = [module.alpha for module in _blended(model).values()]
    kept = [alpha.clone() for alpha in alphas]
    for alpha in alphas:
        alpha.fill_(1.0)
    try:
        yield
    finally:
        for alpha, value in zip(alphas, kept, strict=True):
            alpha.copy_(value)


def blend_alphas(model: nn.Module) -> dict[str, float]:
    """Return alpha of every blended tensor by its quantizer's name."""
    return {name: float(module.alpha) for name, module in _blended(model).items()}


def _blended(model: nn.Module) -> dict[str, FakeQuantize]:
    """Return the quantizers that blend, by name."""
    quantizers = {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantize)}
    return {name: module for name, module in quantizers.items() if module.blend is not None}
