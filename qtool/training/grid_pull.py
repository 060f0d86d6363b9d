"""A pull of latent weights towards their levels, beside the optimizer's step (CAGE)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qtool.numerics.grid import dequantize, quantize
from qtool.numerics.schedules import Schedule
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.weights import WeightQuantizer, may_train
from qtool.training.step_aid import StepAid

Named = dict[str, object]  # a group of an optimizer


class GridPull(StepAid):
    """Moves every quantized weight against its rounding error, after the optimizer's step.

        w <- w - rate lambda (w - Q(w)),  both of before the step

    with the weight's own learning rate, and lambda a schedule. The rest of the step is the
    optimizer's: the decoupled form, which the paper recommends for adaptive optimizers.

    Reference: Tabesh et al., 2025, arXiv:2510.18784.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, strength: Schedule
    ) -> None:
        """Pull at the weights that an optimizer moves.

        Args:
            model: prepared.
            optimizer: over the groups of `parameter_groups`.
            strength: lambda by the share of training done.
        """
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        self._pulled = [
            (layer, quantizer, groups[id(layer.weight)])
            for layer in quant_layers(model).values()
            if (quantizer := layer.weight_quantizer) is not None
            and not quantizer.squashes
            and id(layer.weight) in groups
        ]
        self._schedule = strength
        device = next(model.parameters()).device
        self._strength = torch.zeros((), device=device)  # a graph of a step reads it
        self._errors: list[tuple[Tensor, Tensor, Named]] = []

    def begin(self) -> None:
        """Move the strength to where training is."""
        if self._pulled:
            self._strength.fill_(self._schedule(self._pulled[0][1].progress))

    @torch.no_grad()
    def before(self) -> None:
        """Keep the errors of the weights as the gradients saw them."""
        self._errors = [
            (layer.weight, _error(layer, quantizer), group)
            for layer, quantizer, group in self._pulled
            if may_train(layer.weight) and layer.weight.grad is not None
        ]

    @torch.no_grad()
    def after(self) -> None:
        """Take the errors, times rate and strength, from the weights."""
        for weight, error, group in self._errors:
            weight.sub_(error.mul_(self._strength).mul_(_rate_of(group)))
        self._errors = []


def _rate_of(group: Named) -> Tensor | float:
    rate = group["lr"]
    assert isinstance(rate, Tensor | float | int)
    return rate


def _error(layer: QuantLayer, quantizer: WeightQuantizer) -> Tensor:
    """Return w - Q(w) of a layer's weight, of its shape; 0 where an element is frozen."""
    rows = quantizer.before_rounding(layer.weight.detach())
    grid, scale = quantizer.known_grid, quantizer.used_scale
    levels = dequantize(quantize(rows, scale, 0, grid), scale, 0, grid)
    restore: Callable[[Tensor], Tensor] = quantizer.layout.weight
    return restore(rows - levels)
