"""What all layers share whose weight and input are fake-quantized."""

from torch import Tensor, nn

from qtool.graph.swap import Part
from qtool.numerics.weight_rows import WeightRows
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.weights import WeightQuantizer, may_train


class QuantLayer(Part):
    """What all quantized layers share.

    Attributes:
        weight_quantizer: None where the weight is left float.
        input_quantizer: None where the input is left float.
        learning_rate_scale: factor on the learning rate of the latent weight.
        source: the quantizer of the ReLU whose output the input is, in a tuple, so that it is not
            the layer's own; empty where there is none.
    """

    maker = "qtool.prepare"

    weight: Tensor
    bias: Tensor | None
    weight_quantizer: WeightQuantizer | None
    input_quantizer: ActivationQuantizer | None
    learning_rate_scale: float
    source: tuple[()] | tuple[ActivationQuantizer]

    @property
    def layout(self) -> WeightRows:
        """Return how the rows of the weight, one for each output channel, lie in it."""
        return layout_of(self)

    @property
    def whole_weight(self) -> Tensor:
        """Return the weight that is rounded: the parameter, unless the layer computes it."""
        return self.weight

    @property
    def quantizer_of_input(self) -> ActivationQuantizer | None:
        """Return what quantizes the input, here or before it gets here."""
        return self.source[0] if self.source else self.input_quantizer

    def quantized_operands(self, x: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the input and the weight, its own by default, as the layer computes with them."""
        weight = self.weight if weight is None else weight
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        if self.weight_quantizer is None:
            return x, weight
        return x, self.weight_quantizer(weight)

    def of_operands(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return what the layer computes of an input and a weight as they are, its bias added."""
        raise NotImplementedError

    def fit_weight(self) -> None:
        """Fit the weight's scales anew, unless its blend is done."""
        if self.weight_quantizer is not None and not self.weight_quantizer.frozen:
            self.weight_quantizer.fit(self.whole_weight)

    def set_progress(self, progress: float) -> None:
        """Move the weight's schedules; a weight whose blend is done no longer trains."""
        if self.weight_quantizer is None:
            return
        self.weight_quantizer.set_progress(progress)
        if self.weight_quantizer.blend_is_done:
            if not self.weight_quantizer.frozen and may_train(self.weight):
                self.weight_quantizer.fit_again(self.whole_weight)
            self.weight_quantizer.frozen = True
            self.freeze()

    def freeze(self) -> None:
        """Let the weight no longer train."""
        self.weight.requires_grad = False
        self.weight.grad = None


def layout_of(layer: nn.Module) -> WeightRows:
    """Return how the rows of a layer's weight, one for each output channel, lie in it."""
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.transposed:
        return WeightRows(transposed=True, groups=layer.groups)
    return WeightRows()
