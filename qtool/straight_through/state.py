"""A run with a custom estimator -> the straight-through run that it is equivalent to.

Under SGD that is: start from M(w0), and multiply the weight's learning rate by alpha. A run that
has begun is mapped by M too, and its momentum v becomes v M'(w) / alpha, which inside the grid is
v divided by the estimator's derivative at w. Under Adam weights and learning rate stay as they
are; the first moment is divided by that derivative, the second by its square.

Reference: Schoenbauer et al., 2024, arXiv:2405.05171.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from qtool.errors import ConversionError
from qtool.quantizers.computed import ComputesWeight
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.weights import WeightQuantizer
from qtool.reports.results import MovedLayer
from qtool.straight_through.weights import WeightMap


@torch.no_grad()
def carry_over(
    old: tuple[nn.Module, Optimizer],
    new: tuple[nn.Module, Optimizer],
    maps: Mapping[str, WeightMap],
    *,
    adaptive: bool,
) -> list[MovedLayer]:
    """Put a run's state into its straight-through form, in place; say what became of each layer.

    Args:
        old: fake-quantized model and optimizer, trained so far.
        new: the same network and optimizer with straight_through, as they begin.
        maps: layer -> alpha and M of its weight.
        adaptive: the optimizer is one of Adam's family.
    """
    (model, optimizer), (target, target_optimizer) = old, new
    target.load_state_dict(model.state_dict())
    states, parameters = optimizer.state, dict(target.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter in states:
            kept = {
                k: v.clone() if isinstance(v, Tensor) else v for k, v in states[parameter].items()
            }
            target_optimizer.state[parameters[name]] = kept
    layers, new_layers = quant_layers(model), quant_layers(target)
    rows: list[MovedLayer] = []
    for name, weight_map in maps.items():
        quantizer = layers[name].weight_quantizer if name in layers else None
        if quantizer is None:  # its model does not call it, so that it was released
            continue
        if isinstance(layers[name], ComputesWeight):
            raise ConversionError(
                f"{name}: its weight is computed in each pass, so that M cannot be taken of it; "
                f"leave it float by an override"
            )
        weight, mapped, scale = layers[name].weight, new_layers[name].weight, quantizer.used_scale
        slope, layout = slope_at(weight.detach(), quantizer), quantizer.layout
        state = target_optimizer.state.get(mapped, {})
        if adaptive:
            _divide_moments(state, slope)
        else:
            mapped.copy_(layout.weight(weight_map.map(layout.rows(weight), scale)))
            _divide_momentum(state, slope, weight_map.in_steps.alpha)
        rows.append(
            MovedLayer(
                layer=name,
                estimator=weight_map.estimator,
                alpha=1.0 if adaptive else weight_map.in_steps.alpha,
                largest_shift=float((mapped - weight).abs().max() / scale.max()),
            )
        )
    return rows


def slope_at(weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
    """Return the derivative of a quantizer's estimator, as it is at present, at each weight."""
    u = quantizer.layout.rows(weight) / quantizer.used_scale + quantizer.known_grid.offset
    return quantizer.layout.weight(quantizer.estimator(torch.ones_like(u), u, *quantizer.bounds()))


def _divide_momentum(state: Mapping[str, object], slope: Tensor, alpha: float) -> None:
    """Let SGD's momentum change M(w) as it changed w; where the derivative is 0, M(w) is w."""
    if isinstance(buffer := state.get("momentum_buffer"), Tensor):
        buffer.div_(torch.where(slope > 0, slope, torch.full_like(slope, alpha)))


def _divide_moments(state: Mapping[str, object], slope: Tensor) -> None:
    """Let Adam's moments be those of the gradients that straight_through would have passed."""
    divisor = torch.where(slope > 0, slope, torch.ones_like(slope))
    for key, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
        if isinstance(moment := state.get(key), Tensor):
            moment.div_(divisor**power)


@torch.no_grad()
def prove_equal(model: nn.Module, target: nn.Module, images: Tensor) -> float:
    """Return the largest difference of two models' outputs on images, which must be 0.

    Raises:
        ConversionError: If it is not.
    """
    model.eval()
    target.eval()
    gap = float((model(images) - target(images)).abs().max())
    if gap != 0:
        raise ConversionError(
            f"the straight-through form gives other outputs than the run, by up to {gap:.3g}; "
            f"some code changed on the way, which is a fault of qtool"
        )
    return gap
