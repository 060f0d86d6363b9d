"""A network that is lost although its loss is finite: looked for after each epoch.

Numbers that are not finite need not reach the loss: a variance that overflowed makes its channel 0,
a second moment that did makes its weight stand still. And a layer whose every weight, or whose
every input, saturates has no gradient that would bring it back.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qtool.errors import TrainingError
from qtool.numerics.scales import SMALLEST_SCALE
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.door.finite import bad_numbers, not_finite
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import QuantLayer
from qtool.quantizers.weights import WeightQuantizer
from qtool.training.failures import SLOWER, each_layer
from qtool.world.world import World

BEYOND = 2.0  # times the end of the grid: weights there do not come back by rounding


class Lost:
    """Looks at a model and its optimizer after each epoch.

    Attributes:
        saturated: names of quantizers that were saturated after the last one.
    """

    def __init__(self) -> None:
        self.saturated: set[str] = set()
        self._constant: Tensor | None = None
        self._first: Tensor | None = None

    def refuse(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, when: str, *, last: bool
    ) -> None:
        """Check numbers and quantizers after an epoch.

        A learned scale that one step threw to its floor may come back, so what saturates fails
        where it does so after two epochs in a row, or after the last one.

        Raises:
            TrainingError: Says what is wrong, where and when.
        """
        found = bad_numbers(model) or bad_moments(model, optimizer)
        if not found:
            saturated = dict(saturated_tensors(model))
            stays = [why for name, why in saturated.items() if last or name in self.saturated]
            self.saturated, found = set(saturated), stays
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            raise TrainingError(f"{found[0]} {when}{more}. {SLOWER}")

    def see_logits(self, logits: Tensor, labels: Tensor) -> None:
        """See a batch of logits [B, classes] of validation images."""
        if labels.is_floating_point():  # a number may well be the same for all
            return
        if self._first is None:
            self._first = logits[:1].detach().clone()
            self._constant = torch.ones((), dtype=torch.bool, device=logits.device)
        if self._constant is not None and len(logits):
            self._constant = self._constant & (logits == self._first).all()

    def begin_validation(self) -> None:
        """Forget what was seen before."""
        self._first = self._constant = None

    def share(self, world: World) -> None:
        """Know of the logits that all processes have seen, each those of its own images."""
        constant = self._constant is not None and bool(self._constant)
        first = str(self._first.tolist()) if self._first is not None and constant else "several"
        told = {word for word in world.told("" if self._constant is None else first) if word}
        if len(told) > 1:
            self._constant = None

    def refuse_constant(self, model: nn.Module, images: Tensor, when: str) -> None:
        """Check that not all the logits that were seen are the same.

        Args:
            model: in evaluation mode.
            images: a batch of what was seen.
            when: such as "after epoch 3".

        Raises:
            TrainingError: Names the first layer whose output is the same for all images.
        """
        if self._constant is None or not self._constant or len(images) < 2:
            return
        if bool((images == images[:1]).all()):
            return
        place, layer = first_constant_layer(model, images)
        if layer is not None and _scaled_by_rule(layer):
            return
        raise TrainingError(
            f"the network gives the same logits for every validation image {when}; {place}. "
            f"Lower the learning rate or the weight decay, or choose other ranges"
        )


def bad_moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Return what is not finite in the optimizer's state, a line for each tensor."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments = [
        (f"the optimizer's {key} of {names.get(id(parameter), 'a parameter')}", value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, Tensor) and value.is_floating_point()
    ]
    if not moments:
        return []
    sound = torch.stack([torch.isfinite(v).all().to(moments[-1][1].device) for _, v in moments])
    flags = sound.tolist()
    return [
        f"{name} {not_finite(value)}"
        for (name, value), good in zip(moments, flags, strict=True)
        if not good
    ]


@torch.no_grad()
def saturated_tensors(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the quantizers all of whose values saturate, and how that is known."""
    weights = dict(_weights(model))
    for name, module in model.named_modules():
        if not isinstance(module, FakeQuantize) or module.grid is None or module.bits == 1:
            continue
        if isinstance(module, ActivationQuantizer) and module.learns and module.ready:
            if float(module.used_scale) <= SMALLEST_SCALE:
                yield name, f"the scale of {name} fell to its floor of {SMALLEST_SCALE:g}"
        elif name in weights and isinstance(module, WeightQuantizer) and module.blend is None:
            weight, grid = module.before_rounding(weights[name]), module.grid
            scale = module.used_scale
            end = (grid.qmax - grid.offset) * scale
            if bool((weight.abs() > BEYOND * end).all()):
                told = f"their scales are {float(scale.amin()):.3g} to {float(scale.amax()):.3g}"
                least = f"and none is less than {float(weight.abs().amin()):.3g}"
                yield name, f"all weights of {name.rpartition('.')[0]} saturate: {told}, {least},"


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight that is quantized, by the name of its quantizer."""
    for name, module in model.named_modules():
        if isinstance(module, QuantLayer) and module.weight_quantizer is not None:
            yield f"{name}.weight_quantizer".lstrip("."), module.whole_weight.detach()


@torch.no_grad()
def first_constant_layer(model: nn.Module, images: Tensor) -> tuple[str, nn.Module | None]:
    """Say which layer is the first that makes the same of different inputs; return it, too."""
    found: list[tuple[str, nn.Module]] = []

    def look(name: str, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        given = args[0] if args else None
        if found or not isinstance(output, Tensor) or not isinstance(given, Tensor):
            return
        if _varies(given) and not _varies(output):
            why = _reason(module, given)
            found.append((f"the first layer that makes the same of all is {name}{why}", module))

    with each_layer(model, look):
        model(images)
    return found[0] if found else ("no single layer does that by itself", None)


def _scaled_by_rule(layer: nn.Module) -> bool:
    """Tell whether a layer's weights have the scale of a formula, such as he_uniform's.

    That may round all of a start drawn otherwise to 0, which is for a health report to say.
    """
    quantizer = layer.weight_quantizer if isinstance(layer, QuantLayer) else None
    if quantizer is None:
        return False
    return quantizer.settings.of_range.given and "scale" not in quantizer.settings.range.params


def _varies(tensor: Tensor) -> bool:
    """Tell whether the entries [B, ...] of a batch differ."""
    return tensor.ndim > 0 and bool((tensor != tensor[:1]).any())


def _reason(module: nn.Module, given: Tensor) -> str:
    """Say why a layer makes the same of all its inputs, where its scale or its weight tells."""
    if isinstance(module, ActivationQuantizer):
        low, high = float(given.amin()), float(given.amax())
        scale = float(module.used_scale)
        return f" (its scale is {scale:.3g}, its inputs are {low:.3g} to {high:.3g})"
    if not isinstance(module, QuantLayer) or module.weight_quantizer is None:
        return ""
    if bool(module.weight_quantizer(module.whole_weight).any()):
        return ""
    largest = float(module.weight.detach().abs().amax())
    return f" (all of its codes are 0; its largest weight is {largest:.3g})"
