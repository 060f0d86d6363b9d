"""Layers whose weight and input are fake-quantized."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.weights import WeightQuantizer, begin_steps
from qtool.settings.tensors import ActivationQuantization, WeightQuantization


class QuantLayer(nn.Module):
    """What QuantConv2d and QuantLinear share.

    Attributes:
        weight_quantizer: None where the weight is left float.
        input_quantizer: None where the input is left float.
        learning_rate_scale: factor on the learning rate of the latent weight.
        source: the quantizer of the ReLU whose output the input is, in a tuple, so that it is not
            the layer's own; empty where there is none.
    """

    weight: Tensor
    bias: Tensor | None
    weight_quantizer: WeightQuantizer | None
    input_quantizer: ActivationQuantizer | None
    learning_rate_scale: float
    source: tuple[()] | tuple[ActivationQuantizer]

    @property
    def quantizer_of_input(self) -> ActivationQuantizer | None:
        """Return what quantizes the input, here or before it gets here."""
        return self.source[0] if self.source else self.input_quantizer

    def quantized_operands(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input and the weight as the layer computes with them."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        if self.weight_quantizer is None:
            return x, self.weight
        return x, self.weight_quantizer(self.weight)

    def fit_weight(self) -> None:
        """Fit the weight's scales anew, unless its blend is done."""
        if self.weight_quantizer is not None and not self.weight_quantizer.frozen:
            self.weight_quantizer.fit(self.weight)

    def set_progress(self, progress: float) -> None:
        """Move the weight's schedules; a weight whose blend is done no longer trains."""
        if self.weight_quantizer is None:
            return
        self.weight_quantizer.set_progress(progress)
        if self.weight_quantizer.blend_is_done:
            if not self.weight_quantizer.frozen:
                self.weight_quantizer.fit_again(self.weight)
            self.weight_quantizer.frozen = True
            self.weight.requires_grad_(False)
            self.weight.grad = None


class QuantConv2d(QuantLayer, nn.Conv2d):
    """A convolution whose weight and input are fake-quantized."""

    def forward(self, input: Tensor) -> Tensor:
        """Return conv(x_hat, w_hat) + bias, [B, C, H, W]."""
        x, weight = self.quantized_operands(input)
        return self._conv_forward(x, weight, self.bias)


class QuantLinear(QuantLayer, nn.Linear):
    """A linear layer whose weight and input are fake-quantized."""

    def forward(self, input: Tensor) -> Tensor:
        """Return x_hat @ w_hat.T + bias, [..., out_features]."""
        x, weight = self.quantized_operands(input)
        return F.linear(x, weight, self.bias)


QUANT_TYPES: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Conv2d: QuantConv2d,
    nn.Linear: QuantLinear,
}
_FLOAT_TYPES: dict[type[nn.Module], type[nn.Module]] = {
    q: plain for plain, q in QUANT_TYPES.items()
}


def make_quant_layer(
    layer: nn.Module,
    weights: WeightQuantization | None,
    activations: ActivationQuantization | None,
    source: ActivationQuantizer | None = None,
) -> QuantLayer:
    """Turn a Conv2d or Linear into its quantized form, in place: parameters and hooks stay.

    With a `source`, the layer has no quantizer of its own for its input.
    """
    layer.__class__ = QUANT_TYPES[type(layer)]
    assert isinstance(layer, QuantLayer)
    layer.weight_quantizer = WeightQuantizer(weights, layer.weight) if weights else None
    layer.input_quantizer = None
    if activations is not None and source is None:
        layer.input_quantizer = ActivationQuantizer(activations)
    layer.source = () if source is None else (source,)
    if layer.input_quantizer is not None:
        layer.input_quantizer.to(layer.weight.device)
    layer.learning_rate_scale = weights.learning_rate_scale if weights else 1.0
    layer.train(layer.training)
    return layer


def release_quant_layer(layer: nn.Module) -> None:
    """Turn a quantized layer into its float form again, in place."""
    layer.__class__ = _FLOAT_TYPES[type(layer)]
    for name in ("weight_quantizer", "input_quantizer", "learning_rate_scale", "source"):
        delattr(layer, name)


def quant_layers(model: nn.Module) -> dict[str, QuantLayer]:
    """Return every quantized layer by its name, each once."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantLayer)}


def set_progress(model: nn.Module, progress: float) -> None:
    """Move every quantizer's schedules to `progress`, the share of training done (0..1)."""
    for module in model.modules():
        if isinstance(module, QuantLayer | ActivationQuantizer):
            module.set_progress(progress)


def begin_step(model: nn.Module) -> None:
    """Do what is due once per training step: fit scales again, watch weights oscillate.

    A forward pass does so by itself until this is called for the first time. From then on it must
    be called before each step, and the forward pass in training is tensor arithmetic alone, which
    can be compiled as a whole or captured in a CUDA graph.
    """
    quantizers, weights = [], []
    for module in model.modules():
        if isinstance(module, ActivationQuantizer):
            module.begin_step()
        elif isinstance(module, QuantLayer) and module.weight_quantizer is not None:
            module.weight_quantizer.ahead = True
            quantizers.append(module.weight_quantizer)
            weights.append(module.weight)
    if quantizers:
        begin_steps(quantizers, weights)


def make_traceable(model: nn.Module) -> None:
    """Keep in tensors what schedules move, so that a trace of the model follows them."""
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            module.move_in_tensors()


def compile_kernels(model: nn.Module, wanted: bool = True) -> None:
    """Let every quantizer compile kernels of its own, where a compiler is found, or no longer."""
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            module.compiles = wanted


def dampening_penalty(model: nn.Module) -> Tensor | None:
    """Return what oscillation dampening adds to the loss, [], or None where nothing is dampened."""
    layers = [layer for layer in quant_layers(model).values() if layer.weight_quantizer is not None]
    found = [q.penalty(layer.weight) for layer in layers if (q := layer.weight_quantizer)]
    penalties = [penalty for penalty in found if penalty is not None]
    return torch.stack(penalties).sum() if penalties else None


def take_oscillations(model: nn.Module) -> dict[str, dict[str, float]]:
    """Return how often weight codes changed since the last call: measure -> layer -> value.

    flip_ratio: share of codes that changed, mean over steps; oscillation_frequency: moving average
    of changes against the last change's direction; frozen_share: where weights may be frozen.
    """
    measures: dict[str, dict[str, float]] = {}
    for name, layer in quant_layers(model).items():
        if layer.weight_quantizer is not None:
            for measure, value in layer.weight_quantizer.tracker.take_metrics().items():
                measures.setdefault(measure, {})[name] = value
    return measures


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
