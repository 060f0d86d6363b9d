"""What is done to each layer in the order of the network, each by what those before it give.

One pass of the network over calibration images is enough: it stops before each layer, and goes on
with what the layer is then.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from qtool.graph.inputs import Inputs
from qtool.post_training.below_saturation import hold_below_saturation
from qtool.post_training.bias_correction import shift_output
from qtool.post_training.coordinates import aimed, descended
from qtool.post_training.gptq import compensated_codes, hessian
from qtool.post_training.held_codes import codes_of, hold_codes, quantizer_of, rows_of
from qtool.post_training.outputs import (
    FloatOutput,
    by_channel,
    channel_means,
    float_outputs,
    places_of,
)
from qtool.post_training.patches import of_positions, patches, product, taken
from qtool.post_training.walk import called_once, walk
from qtool.post_training.weight_scales import best_scales, may_choose
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.saturation import saturating_rows, take_fewer_steps
from qtool.reports.improvements import Applied, Step


@dataclass
class InOrder:
    """The layers of a prepared network, one after the other.

    Attributes:
        model: changed in place.
        inputs: calibration images.
        expected: what the float network's layers give.
        avoids: codes of which no two neighbours saturate on processors without VNNI.
        done: what was done on the way that is gone, or was gone last.
    """

    model: nn.Module
    inputs: Inputs
    expected: dict[str, FloatOutput]
    avoids: bool = False
    done: list[Applied] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, *, avoids: bool = False) -> "InOrder":
        """Return a network that nothing was done to."""
        return cls(model, inputs, float_outputs(model, inputs, called_once(model)), avoids)

    def go(self) -> list[Applied]:
        """Choose scales and codes of each layer's weight, and its bias; return what was done."""
        return self._each(self._weight)

    def avoid_saturation(self) -> list[Applied]:
        """Choose codes anew where two could saturate, and correct biases; return what was done."""
        seen = set(called_once(self.model))
        for name, layer in quant_layers(self.model).items():
            if name not in seen:
                take_fewer_steps(layer)
        return self._each(self._without_saturation)

    def _each(self, choose: Callable[[str, QuantLayer, Tensor], None]) -> list[Applied]:
        """Choose each layer's weight by what it is given, and correct its bias."""

        def visit(name: str, layer: QuantLayer, x: Tensor) -> None:
            x, _ = layer.quantized_operands(x, layer.whole_weight)
            if layer.weight_quantizer is not None:
                choose(name, layer, x)
            self._bias(name, layer, x)

        self.done = []
        walk(self.model, self.inputs, visit)
        return self.done

    def _weight(self, name: str, layer: QuantLayer, x: Tensor) -> None:
        """Choose scales and codes of a layer's weight by what it is multiplied by."""
        quantizer, given = quantizer_of(layer), rows_seen(layer, x)
        rows, moments = self._aimed(name, layer, given), hessian(given)
        before = self._error(name, layer, given)
        if may_choose(quantizer):
            quantizer.scale.copy_(best_scales(quantizer, rows.flatten(1), moments.float()))
            before = self._note(name, "weight_scales", before, self._error(name, layer, given))
        codes = compensated_codes(rows, quantizer.on_grid, moments)
        if codes is not None:
            codes, scales = descended(
                rows, quantizer.on_grid, codes, moments, scales=may_choose(quantizer)
            )
            if may_choose(quantizer):
                quantizer.scale.copy_(scales * quantizer.known_grid.code_step)
            hold_codes(layer, codes)
            self._note(name, "rounding", before, self._error(name, layer, given))
        if self.avoids and saturating_rows(layer).any():
            self._hold_below(name, layer, given, rows)

    def _without_saturation(self, name: str, layer: QuantLayer, x: Tensor) -> None:
        """Choose other codes for a layer that could saturate, by what it is multiplied by."""
        if saturating_rows(layer).any():
            given = rows_seen(layer, x)
            self._hold_below(name, layer, given, self._aimed(name, layer, given))

    def _hold_below(self, name: str, layer: QuantLayer, given: Tensor, rows: Tensor) -> None:
        """Choose other codes for a layer, near `rows`, of which no two neighbours saturate."""
        before = self._error(name, layer, given)
        hold_below_saturation(layer, rows, hessian(given))
        self._note(name, "saturation", before, self._error(name, layer, given))

    def _aimed(self, name: str, layer: QuantLayer, given: Tensor) -> Tensor:
        """Return the rows of a layer's weight, aimed at what it gives in the float network."""
        return aimed(rows_of(layer), given, self.expected[name].rows - _bias_of(layer))

    def _error(self, name: str, layer: QuantLayer, given: Tensor) -> float:
        """Return the error of what a layer makes of its input at some places."""
        rounded = quantizer_of(layer).on_grid.values(codes_of(layer))
        return self.expected[name].error(product(given, rounded) + _bias_of(layer))

    def _bias(self, name: str, layer: QuantLayer, x: Tensor) -> None:
        """Give what a layer puts out the mean that it has in the float network."""
        quantizer, weight = layer.weight_quantizer, layer.whole_weight
        rounded = weight if quantizer is None else quantizer(weight)
        made = by_channel(layer, layer.of_operands(x, rounded))
        expected = self.expected[name]
        by = expected.mean - channel_means(made)
        shift_output(self.model, name, layer, by)
        rows = made[places_of(layer, len(made))]
        shifted = rows + by.to(rows.dtype)
        self._note(name, "bias_correction", expected.error(rows), expected.error(shifted))

    def _note(self, name: str, step: Step, before: float, after: float) -> float:
        row = Applied(layer=name, step=step, error_before=before, error_after=after)
        self.done.append(row)
        return after


def _bias_of(layer: QuantLayer) -> Tensor | float:
    return 0.0 if layer.bias is None else layer.bias.detach()


def rows_seen(layer: QuantLayer, x: Tensor) -> Tensor:
    """Return what a layer multiplies its weight by at some places of an input, [P, groups, K]."""
    y = layer.of_operands(x, layer.whole_weight)
    view, axes = patches(layer, x, y.shape), of_positions(layer, y).ndim - 1
    chosen = places_of(layer, view.shape[:axes].numel())
    return taken(view, chosen.to(x.device), axes).flatten(2)
