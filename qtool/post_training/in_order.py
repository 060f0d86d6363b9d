"""What is done to each layer in the order of the network, each by what those before it give.

One pass of the network over calibration images is enough: it stops before each layer, and goes on
with what the layer is then.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from qtool.graph.inputs import Inputs
from qtool.post_training.bias_correction import shift_output
from qtool.post_training.coordinates import aimed, descended
from qtool.post_training.gptq import compensated_codes, hessian
from qtool.post_training.held_codes import hold_codes, quantizer_of, rows_of
from qtool.post_training.outputs import (
    FloatOutput,
    by_channel,
    channel_means,
    float_outputs,
    places,
)
from qtool.post_training.patches import of_positions, patches, product, taken
from qtool.post_training.walk import called_once, walk
from qtool.post_training.weight_scales import best_scales, may_choose, second_moments
from qtool.quantizers.layers import QuantLayer
from qtool.reports.improvements import Applied, Step


@dataclass
class InOrder:
    """The layers of a prepared network, one after the other.

    Attributes:
        model: changed in place.
        inputs: calibration images.
        expected: what the float network's layers give.
        done: what was done so far.
    """

    model: nn.Module
    inputs: Inputs
    expected: dict[str, FloatOutput]
    done: list[Applied] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> "InOrder":
        """Return a network that nothing was done to."""
        return cls(model, inputs, float_outputs(model, inputs, called_once(model)))

    def go(self) -> list[Applied]:
        """Choose scales and codes of each layer's weight, and its bias; return what was done."""

        def visit(name: str, layer: QuantLayer, x: Tensor) -> None:
            x, _ = layer.quantized_operands(x, layer.whole_weight)
            if layer.weight_quantizer is not None:
                self._weight(name, layer, x)
            self._bias(name, layer, x)

        walk(self.model, self.inputs, visit)
        return self.done

    def correct_biases(self) -> list[Applied]:
        """Correct the bias of each layer alone; return what was done."""

        def visit(name: str, layer: QuantLayer, x: Tensor) -> None:
            x, _ = layer.quantized_operands(x, layer.whole_weight)
            self._bias(name, layer, x)

        walk(self.model, self.inputs, visit)
        return self.done

    def _weight(self, name: str, layer: QuantLayer, x: Tensor) -> None:
        """Choose scales and codes of a layer's weight by what it is multiplied by."""
        quantizer = quantizer_of(layer)
        given = self._seen(layer, x)
        expected, rows = self.expected[name], rows_of(layer)
        bias = 0.0 if layer.bias is None else layer.bias.detach()

        def error() -> float:
            rounded = quantizer.on_grid.values(quantizer.on_grid.codes(rows_of(layer)))
            return expected.error(product(given, rounded) + bias)

        before = error()
        rows = aimed(rows, given, expected.rows - bias)
        if may_choose(quantizer):
            scales = best_scales(quantizer, rows.flatten(1), second_moments(given))
            quantizer.scale.copy_(scales)
            before = self._note(name, "weight_scales", before, error())
        moments = hessian(given)
        codes = compensated_codes(rows, quantizer.on_grid, moments)
        if codes is not None:
            codes, scales = descended(
                rows, quantizer.on_grid, codes, moments, scales=may_choose(quantizer)
            )
            if may_choose(quantizer):
                quantizer.scale.copy_(scales * quantizer.known_grid.code_step)
            hold_codes(layer, codes)
            self._note(name, "rounding", before, error())

    def _bias(self, name: str, layer: QuantLayer, x: Tensor) -> None:
        """Give what a layer puts out the mean that it has in the float network."""
        quantizer, weight = layer.weight_quantizer, layer.whole_weight
        rounded = weight if quantizer is None else quantizer(weight)
        made = by_channel(layer, layer.of_operands(x, rounded))
        expected = self.expected[name]
        by = expected.mean - channel_means(made)
        shift_output(self.model, name, layer, by)
        rows = made[places(len(made))]
        shifted = rows + by.to(rows.dtype)
        self._note(name, "bias_correction", expected.error(rows), expected.error(shifted))

    def _seen(self, layer: QuantLayer, x: Tensor) -> Tensor:
        """Return what the layer multiplies its weight by at some places, [P, groups, K]."""
        y = layer.of_operands(x, layer.whole_weight)
        view, axes = patches(layer, x, y.shape), of_positions(layer, y).ndim - 1
        return taken(view, places(view.shape[:axes].numel()).to(x.device), axes).flatten(2)

    def _note(self, name: str, step: Step, before: float, after: float) -> float:
        row = Applied(layer=name, step=step, error_before=before, error_after=after)
        self.done.append(row)
        return after
