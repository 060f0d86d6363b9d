"""The quantizers of other libraries on a float network, each through its public interface.

A peer is a function from the float network and example images to a copy that is ready to train,
with a row in PEERS that says what it is. A library is imported by its own peers only: one that is
not installed, or fails, leaves the others alone. To add one, write a function and its row.
"""

import os
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS = {"weight": (-7, 7), "input": (-8, 7)}
Make = Callable[[nn.Module, Tensor], nn.Module]
Quantizer = Callable[[str, int | None], nn.Module]  # of "weight" or "input"; channels or None


@dataclass(frozen=True)
class Peer:
    """What a library was asked for, in the words of the printed table."""

    make: Make
    scales: str  # of weights, then of activations where those differ
    bits: int = 4
    place: str = "layer_inputs"
    way: str = ""  # how the step is compiled, as make_step takes it


class Fixed(nn.Module):
    """torch's own fake-quantize, with a scale from the first values it sees."""

    def __init__(self, role: str, channels: int | None) -> None:
        super().__init__()
        self.low, self.high = LEVELS[role]
        self.channels = channels
        self.register_buffer("scale", torch.zeros(channels or 1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.scale.any():
            rows = x.detach().reshape(self.channels or 1, -1)
            self.scale.copy_(rows.abs().amax(1) / self.high)
        if self.channels is None:
            scale = float(self.scale)
            return torch.fake_quantize_per_tensor_affine(x, scale, 0, self.low, self.high)
        zeros = torch.zeros(self.channels, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(x, self.scale, zeros, 0, self.low, self.high)


class TorchLearned(Fixed):
    """torch's learnable fake-quantize operators."""

    def __init__(self, role: str, channels: int | None) -> None:
        super().__init__(role, channels)
        del self.scale
        self.scale = nn.Parameter(torch.full((channels or 1,), 0.1))
        self.register_buffer("zero", torch.zeros(channels or 1))

    def forward(self, x: Tensor) -> Tensor:
        factor = (x.numel() * self.high) ** -0.5
        bounds = self.low, self.high
        if self.channels is None:
            return torch._fake_quantize_learnable_per_tensor_affine(
                x, self.scale, self.zero, *bounds, factor
            )
        return torch._fake_quantize_learnable_per_channel_affine(
            x, self.scale, self.zero, 0, *bounds, factor
        )


class PlainLSQ(Fixed):
    """LSQ as papers' repositories write it, with detached differences."""

    def __init__(self, role: str, channels: int | None) -> None:
        super().__init__(role, channels)
        del self.scale
        self.scale = nn.Parameter(torch.full((channels or 1,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        factor = (x.numel() * self.high) ** -0.5
        scale = self.scale.reshape(-1, *[1] * (x.ndim - 1)) if self.channels else self.scale
        scale = (scale - scale * factor).detach() + scale * factor
        u = (x / scale).clamp(self.low, self.high)
        return ((u.round() - u).detach() + u) * scale


class Swapped(nn.Module):
    """A convolution or linear layer with quantizers at its weight and its input."""

    def __init__(self, layer: nn.Module, kind: Quantizer) -> None:
        super().__init__()
        self.layer = layer
        self.of_weight = kind("weight", layer.get_parameter("weight").shape[0])
        self.of_input = kind("input", None)

    def forward(self, x: Tensor) -> Tensor:
        layer, x = self.layer, self.of_input(x)
        weight = self.of_weight(layer.weight)
        if isinstance(layer, nn.Conv2d):
            return layer._conv_forward(x, weight, layer.bias)
        return F.linear(x, weight, layer.bias)


def swapped(kind: Quantizer) -> Make:
    """Return what puts quantizers of a kind on every layer."""
    return lambda model, images: replaced(model, lambda layer: Swapped(layer, kind))


def replaced(model: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Return a copy whose convolutions and linear layers are made anew."""
    model = deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make(layer))
    return model


def observed(library: Any, kind: Any, role: str, channels: int | None, **more: Any) -> nn.Module:
    """Return a fake-quantize module of torch.ao or of torchao, which took over its interface."""
    if channels is None:
        observer, scheme = library.MovingAverageMinMaxObserver, torch.per_tensor_symmetric
    else:
        observer = library.MovingAveragePerChannelMinMaxObserver
        scheme = torch.per_channel_symmetric
        more["ch_axis"] = 0
    low, high = LEVELS[role]
    return kind(observer, quant_min=low, quant_max=high, dtype=torch.qint8, qscheme=scheme, **more)


def torch_fused(role: str, channels: int | None) -> nn.Module:
    """Return torch.ao's fused moving-average observer and fake-quantize."""
    from torch.ao import quantization as library

    return observed(library, library.FusedMovingAvgObsFakeQuantize, role, channels)


def torchao_learnable(role: str, channels: int | None) -> nn.Module:
    """Return torchao's learnable fake-quantize of its export flow, its scale learned."""
    from torchao.quantization import pt2e

    made = observed(pt2e, pt2e.LearnableFakeQuantize, role, channels, use_grad_scaling=True)
    made.enable_range_learning()
    return made


class TorchaoRows(nn.Module):
    """torchao's IntxFakeQuantizer, whose finest whole unit is a row, on a view as rows."""

    def __init__(self, role: str, channels: int | None) -> None:
        from torchao.quantization import qat

        super().__init__()
        learned = {"is_dynamic": False, "range_learning": True}
        config = qat.IntxFakeQuantizeConfig(torch.int4, "per_channel", is_symmetric=True, **learned)
        self.quantizer = qat.IntxFakeQuantizer(config)
        self.rows = channels or 1

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            return self.quantizer(x.reshape(self.rows, -1)).reshape(x.shape)
        inner = x.permute(0, 2, 3, 1)  # no copy where x is channels_last
        rows = self.quantizer(inner.reshape(self.rows, -1))
        return rows.reshape(inner.shape).permute(0, 3, 1, 2)


def torchao_rows(model: nn.Module, images: Tensor) -> nn.Module:
    """Return the model with torchao's quantizer of linear layers, its scales learned."""
    from torchao.quantization import qat

    model = replaced(model, lambda layer: Swapped(layer, TorchaoRows))
    qat.initialize_fake_quantizers(model, (images,))
    return model


def brevitas(model: nn.Module, images: Tensor, learned: bool) -> nn.Module:
    """Return the model with Brevitas' layers; not learned: weights from their greatest values.

    Its inputs collect statistics at first, which costs more, and are learned after; that phase is
    cut to one step.
    """
    from brevitas import nn as qnn
    from brevitas.inject.enum import ScalingImplType
    from brevitas.quant import Int8ActPerTensorFloat

    more: dict[str, Any] = {"weight_bit_width": 4, "weight_scaling_per_output_channel": True}
    more |= {"input_quant": Int8ActPerTensorFloat, "input_bit_width": 4}
    more |= {"input_collect_stats_steps": 1}
    if learned:
        more["weight_scaling_impl_type"] = ScalingImplType.PARAMETER_FROM_STATS

    def make(layer: nn.Module) -> nn.Module:
        if isinstance(layer, nn.Conv2d):
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size)
            made = qnn.QuantConv2d(
                *sizes,
                stride=layer.stride,
                padding=layer.padding,
                bias=layer.bias is not None,
                **more,
            )
        else:
            assert isinstance(layer, nn.Linear)
            made = qnn.QuantLinear(layer.in_features, layer.out_features, bias=True, **more)
        made.weight.data.copy_(layer.get_parameter("weight").data)
        return made

    return replaced(model, make)


def modelopt(model: nn.Module, images: Tensor, bits: int) -> nn.Module:
    """Return the model under Model-Optimizer's INT8 recipe at a number of bits."""
    from modelopt.torch import quantization as mtq

    settings: dict[str, Any] = deepcopy(mtq.INT8_DEFAULT_CFG)
    for rule in settings["quant_cfg"]:
        if "num_bits" in rule.get("cfg", {}):
            rule["cfg"]["num_bits"] = bits
    return mtq.quantize(deepcopy(model), settings, lambda found: found(images))


def nncf(model: nn.Module, images: Tensor) -> nn.Module:
    """Return the model under Intel's Neural Network Compression Framework, at its 8 bits."""
    # Its kernels are compiled at the first use, on slow machines for longer than it waits.
    os.environ.setdefault("NNCF_EXTENSION_LOAD_TIMEOUT", "300")
    import nncf as library

    return library.quantize(deepcopy(model), library.Dataset([images]), subset_size=1)


def aimet(model: nn.Module, images: Tensor) -> nn.Module:
    """Return the model under AIMET's simulation."""
    from aimet_torch import QuantizationSimModel

    bits = {"default_param_bw": 4, "default_output_bw": 4}
    simulation = QuantizationSimModel(deepcopy(model), images, **bits)
    with torch.no_grad():
        simulation.compute_encodings(lambda found: found(images))
    return simulation.model


LSQ = "plain LSQ module"
PEERS: dict[str, Peer] = {
    "torch fake_quantize": Peer(swapped(Fixed), "fixed"),
    "torch.ao FusedMovingAvgObsFakeQuantize": Peer(swapped(torch_fused), "running statistics"),
    "torch learnable fake_quantize": Peer(swapped(TorchLearned), "learned"),
    "torchao LearnableFakeQuantize": Peer(swapped(torchao_learnable), "learned"),
    "torchao IntxFakeQuantizer": Peer(torchao_rows, "learned"),
    LSQ: Peer(swapped(PlainLSQ), "learned"),
    "brevitas": Peer(partial(brevitas, learned=True), "learned"),
    "brevitas, its defaults": Peer(partial(brevitas, learned=False), "statistics, learned"),
    "modelopt INT8": Peer(partial(modelopt, bits=8), "fixed", bits=8),
    "modelopt INT8 at 4 bits": Peer(partial(modelopt, bits=4), "fixed"),
    "nncf.quantize": Peer(nncf, "learned", bits=8, place="its own"),
    "aimet QuantizationSimModel": Peer(aimet, "learned", place="its own"),
}
