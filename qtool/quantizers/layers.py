"""Layers whose weight and input are fake-quantized: the kinds."""

from collections.abc import Callable
from functools import cache
from typing import ClassVar, cast

from torch import Tensor, nn
from torch.nn import functional as F

from qtool.graph.sites.running import apart, run_leaf
from qtool.graph.sites.swapped_classes import class_of
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.computed import ComputesWeight
from qtool.quantizers.layer import QuantLayer
from qtool.quantizers.oscillation import OscillationTracker
from qtool.quantizers.weights import WeightQuantizer
from qtool.reports.layers import Kind
from qtool.settings.tensors import ActivationQuantization, WeightQuantization


class _QuantConv(QuantLayer, nn.modules.conv._ConvNd):
    """What convolutions share."""

    def forward(self, input: Tensor) -> Tensor:
        """Return conv(x_hat, w_hat) + bias, [B, C, ...]."""
        x, weight = apart(self.quantized_operands, input)
        return run_leaf(self, self.of_operands, x, weight)

    def of_operands(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return conv(x, weight) + bias, [B, C, ...]."""
        return self._conv_forward(x, weight, self.bias)


class QuantConv1d(_QuantConv, nn.Conv1d):
    """A convolution of one dimension whose weight and input are fake-quantized."""


class QuantConv2d(_QuantConv, nn.Conv2d):
    """A convolution whose weight and input are fake-quantized."""


class QuantConv3d(_QuantConv, nn.Conv3d):
    """A convolution of three dimensions whose weight and input are fake-quantized."""


class _QuantConvTranspose(QuantLayer, nn.modules.conv._ConvTransposeNd):
    """What transposed convolutions share."""

    convolve: ClassVar[Callable[..., Tensor]]

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the transposed conv(x_hat, w_hat) + bias, [B, C, ...], of a size where asked."""
        x, weight = apart(self.quantized_operands, input)
        return run_leaf(self, self.of_operands, x, weight, output_size)

    def of_operands(
        self, x: Tensor, weight: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        """Return the transposed conv(x, weight) + bias, [B, C, ...], of a size where asked."""
        padding = cast(tuple[int, ...], self.padding)
        more = self._output_padding(
            x,
            output_size,
            *(list(self.stride), list(padding), list(self.kernel_size)),
            num_spatial_dims=len(self.stride),
            dilation=list(self.dilation),
        )
        around = self.stride, self.padding, more, self.groups, self.dilation
        return type(self).convolve(x, weight, self.bias, *around)


class QuantConvTranspose1d(_QuantConvTranspose, nn.ConvTranspose1d):
    """A transposed convolution of one dimension whose weight and input are fake-quantized."""

    convolve = staticmethod(F.conv_transpose1d)


class QuantConvTranspose2d(_QuantConvTranspose, nn.ConvTranspose2d):
    """A transposed convolution whose weight and input are fake-quantized."""

    convolve = staticmethod(F.conv_transpose2d)


class QuantConvTranspose3d(_QuantConvTranspose, nn.ConvTranspose3d):
    """A transposed convolution of three dimensions whose weight and input are fake-quantized."""

    convolve = staticmethod(F.conv_transpose3d)


class QuantLinear(QuantLayer, nn.Linear):
    """A linear layer whose weight and input are fake-quantized."""

    def forward(self, input: Tensor) -> Tensor:
        """Return x_hat @ w_hat.T + bias, [..., out_features]."""
        x, weight = apart(self.quantized_operands, input)
        return run_leaf(self, self.of_operands, x, weight)

    def of_operands(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return x @ weight.T + bias, [..., out_features]."""
        return F.linear(x, weight, self.bias)


QUANT_TYPES: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Conv1d: QuantConv1d,
    nn.Conv2d: QuantConv2d,
    nn.Conv3d: QuantConv3d,
    nn.ConvTranspose1d: QuantConvTranspose1d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    nn.ConvTranspose3d: QuantConvTranspose3d,
    nn.Linear: QuantLinear,
}
# methods of torch's layers that decide what they compute
_COMPUTES = ("forward", "_conv_forward", "_output_padding", "__call__")

# on a layer of a subclass, among its attributes
_COMPUTED, _SAME = "qtool_computes_weight", "qtool_computes_the_same"


def plain_type(layer: nn.Module) -> type[nn.Module] | None:
    """Return the kind of layer whose work a module does as it is, such as Conv2d; else None.

    A subclass does where it takes the methods and the weight over as they are, or was seen to do
    the same in a forward of its own, or to compute its weight and to be otherwise plain.
    """
    kind = type(layer)
    for plain in QUANT_TYPES:
        if isinstance(layer, plain) and not hasattr(kind, "weight"):
            if _COMPUTED in vars(layer):
                return plain
            own = [n for n in _COMPUTES if getattr(kind, n, 0) is not getattr(plain, n, 0)]
            if own == ["forward"] and _SAME in vars(layer):
                own = []
            return None if own or "forward" in vars(layer) else plain
    return None


def note_plain(layer: nn.Module, *, computes: bool) -> None:
    """Note of a layer of a subclass that it is plain, perhaps but for a weight that it computes."""
    vars(layer)[_COMPUTED if computes else _SAME] = True


def has_own_forward(layer: nn.Module) -> bool:
    """Tell whether a layer is of a subclass whose own forward was seen to do the same."""
    return _SAME in vars(layer)


@cache
def _quantized(
    kind: type[nn.Module], plain: type[nn.Module], *, computes: bool = False
) -> type[QuantLayer]:
    """Return the quantized form of a type that computes what `plain` does."""
    quantized = QUANT_TYPES[plain]
    if kind is plain:
        return quantized
    bases = (ComputesWeight, quantized, kind) if computes else (quantized, kind)
    # no module holds such a type, so that its layers say themselves how they are unpickled
    content = {"__reduce__": _reduced, "__module__": __name__, "__doc__": quantized.__doc__}
    return type(f"Quant{kind.__name__}", bases, content)


def _reduced(layer: nn.Module) -> tuple[object, ...]:
    computes = isinstance(layer, ComputesWeight)
    return _empty, (float_type(layer), computes), layer.__getstate__()


def _empty(kind: type[nn.Module], computes: bool = False) -> nn.Module:  # noqa: FBT001, FBT002  pickles call it
    """Return a quantized layer of a float type, without anything in it."""
    plain = next(plain for plain in QUANT_TYPES if issubclass(kind, plain))
    made = _quantized(kind, plain, computes=computes)
    return made.__new__(made)


def float_type(layer: nn.Module) -> type[nn.Module]:
    """Return the type that a quantized layer had before."""
    quantized = class_of(layer)
    return _FLOAT_TYPES.get(quantized, quantized.__bases__[-1])


_FLOAT_TYPES: dict[type[nn.Module], type[nn.Module]] = {
    q: plain for plain, q in QUANT_TYPES.items()
}


def kind_of(layer: QuantLayer) -> Kind:
    """Return the kind of a layer, by the name that torch.nn has for it."""
    (kind,) = (plain.__name__ for plain, made in QUANT_TYPES.items() if isinstance(layer, made))
    return cast(Kind, kind)


def make_quant_layer(
    layer: nn.Module,
    weights: WeightQuantization | None,
    activations: ActivationQuantization | None,
    source: ActivationQuantizer | None = None,
) -> QuantLayer:
    """Turn a layer with a `plain_type` into its quantized form, in place; hooks stay.

    With a `source`, the layer has no quantizer of its own for its input.
    """
    plain = plain_type(layer)
    assert plain is not None
    layer.__class__ = _quantized(type(layer), plain, computes=_COMPUTED in vars(layer))
    assert isinstance(layer, QuantLayer)
    layer.weight_quantizer = (
        WeightQuantizer(weights, layer.whole_weight, layer.layout) if weights else None
    )
    layer.input_quantizer = None
    if activations is not None and source is None:
        layer.input_quantizer = ActivationQuantizer(activations)
    layer.source = () if source is None else (source,)
    if layer.input_quantizer is not None:
        layer.input_quantizer.to(layer.weight.device)
    layer.learning_rate_scale = weights.learning_rate_scale if weights else 1.0
    layer.train(layer.training)
    return layer


def hold_weight(layer: QuantLayer, weight: Tensor) -> None:
    """Give a layer a weight of its own, which nothing computes and no one trains any more."""
    if isinstance(layer, ComputesWeight):
        _compute_no_more(layer)
    layer.weight = nn.Parameter(weight, requires_grad=False)


def _compute_no_more(layer: nn.Module) -> None:
    plain = plain_type(layer)
    assert plain is not None
    layer.__class__ = QUANT_TYPES[plain]


def release_quant_layer(layer: nn.Module) -> None:
    """Turn a quantized layer into its float form again, in place."""
    layer.__class__ = float_type(layer)
    for name in ("weight_quantizer", "input_quantizer", "learning_rate_scale", "source"):
        delattr(layer, name)


def quant_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """Return every quantized layer by its name, each once."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLayer)}


def trackers_of(model: nn.Module) -> dict[str, OscillationTracker]:
    """Return what watches the codes of every quantized weight, by its layer's name."""
    layers = quant_layers(model).items()
    return {n: q.tracker for n, m in layers if (q := m.weight_quantizer) is not None}


def take_oscillations(model: nn.Module) -> dict[str, dict[str, float]]:
    """Return how often weight codes changed since the last call: measure -> layer -> value.

    flip_ratio: share of codes that changed, mean over steps; oscillation_frequency: moving average
    of changes against the last change's direction; frozen_share: where weights may be frozen.
    """
    measures: dict[str, dict[str, float]] = {}
    for name, tracker in trackers_of(model).items():
        for measure, value in tracker.take_metrics().items():
            measures.setdefault(measure, {})[name] = value
    return measures
