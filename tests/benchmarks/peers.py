"""The step of step_time.py under the quantizers of other libraries, those that are installed.

    pip install -e ".[peers]" && python tests/benchmarks/peers.py

All have 4-bit weights per channel and 4-bit inputs per tensor on every convolution and the linear
layer, with quantizers at the layers' inputs. `learned` scales are trained, `fixed` are not.
"""

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from step_time import make_step, measure, quantization
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.models.vision import build_model

Swap = Callable[[nn.Module], nn.Module]
LEVELS = {"weight": (-7, 7), "input": (-8, 7)}


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

    def __init__(self, layer: nn.Module, kind: type[Fixed]) -> None:
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


def swapped(kind: type[Fixed]) -> Swap:
    """Return what puts quantizers of a kind on every layer."""
    return lambda model: replaced(model, lambda layer: Swapped(layer, kind))


def replaced(model: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Return a copy whose convolutions and linear layers are made anew."""
    model = deepcopy(model)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make(layer))
    return model


def brevitas(model: nn.Module) -> nn.Module:
    """Return the model with Brevitas' layers, both scales learned."""
    import brevitas.nn as qnn
    from brevitas.inject.enum import ScalingImplType

    learned = ScalingImplType.PARAMETER_FROM_STATS
    keys: dict[str, Any] = {"weight_bit_width": 4, "weight_scaling_impl_type": learned}
    keys |= {"weight_scaling_per_output_channel": True}
    from brevitas.quant import Int8ActPerTensorFloat

    def make(layer: nn.Module) -> nn.Module:
        more = keys | {"input_quant": Int8ActPerTensorFloat, "input_bit_width": 4}
        more |= {"input_collect_stats_steps": 1}
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


def modelopt(model: nn.Module) -> nn.Module:
    """Return the model under Model-Optimizer's INT8 recipe at 4 bits: fixed ranges."""
    import modelopt.torch.quantization as mtq

    settings = deepcopy(mtq.INT8_DEFAULT_CFG)
    model = deepcopy(model)
    images = torch.randn(8, 3, 32, 32)
    return mtq.quantize(model, settings, lambda m: m(images))


PEERS: dict[str, Swap] = {
    "torch fake_quantize, fixed": swapped(Fixed),
    "torch learnable fake_quantize": swapped(TorchLearned),
    "plain LSQ module, learned": swapped(PlainLSQ),
    "brevitas, learned": brevitas,
    "modelopt INT8, fixed": modelopt,
}


def main() -> None:
    """Measure what is installed, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    images = torch.randn(given.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (given.batch,))
    network = build_model("resnet20", 10, 3, 32).model
    network = network.to(memory_format=torch.channels_last)
    models = {"float": deepcopy(network)}
    for place in ("relu_outputs", "layer_inputs"):
        section = quantization("straight_through", 4, "learned", place)
        models[f"qtool, learned, {place}"] = qtool.prepare(network, section, images)
    for name, swap in PEERS.items():
        try:
            model = swap(network)
            model(images)
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"{name:36} does not run here: {reason}")
        else:
            models[name] = model
    steps = {name: make_step(model, images, labels, False) for name, model in models.items()}
    found = measure(steps, given.rounds, images.device)
    for name, row in found.items():
        print(f"{name:36} {row['ms']:9.2f} ms  {row['ratio']:6.3f} x float")
    print(json.dumps({"torch": torch.__version__, **vars(given), "steps": found}))


if __name__ == "__main__":
    main()
