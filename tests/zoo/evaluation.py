"""What a converted model must give, computed without qtool's layers and kernels.

The float network, with the trained parameters, is run with forward functions of its own at every
layer that conversion names: inputs are put on their grids, sums are taken in float64, and what lies
between layers stays what the network itself does. The formulas are those of the contract.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = Mapping[str, Tensor]


def grid_of(bits: int, kind: str) -> tuple[int, int, float]:
    """Return qmin, qmax and the offset o of u = x / s + o."""
    half = 1 << (bits - 1)
    return {
        "narrow": (1 - half, half - 1, 0.0),
        "ternary": (-1, 1, 0.0),
        "full": (-half, half - 1, 0.0),
        "mid_rise": (1 - half, half, 0.5),
        "unsigned": (0, 2 * half - 1, 0.0),
        "asymmetric": (0, 2 * half - 1, 0.0),
    }[kind]


def on_grid(
    x: Tensor, step: Tensor, bits: int, kind: str, *, zero: float = 0.0, up: bool = False
) -> Tensor:
    """Return clamp(round(x / s + o), qmin - z, qmax - z) - o, float64: x_hat in steps of s."""
    low, high, offset = grid_of(bits, kind)
    u = x.float() / step.float() + offset  # thresholds are those of float32
    q = torch.ceil(u) if up else torch.round(u)
    return q.double().clamp(low - zero, high - zero) - offset


def used(scale: Tensor) -> Tensor:
    """Return a scale as it is used: one that an update pushed below 1e-8 counts as 1e-8."""
    return scale.clamp(min=1e-8)


def is_transposed(layer: nn.Module) -> bool:
    """Tell whether a layer's weight is [in, C / groups, ...]."""
    return isinstance(layer, nn.modules.conv._ConvTransposeNd)


def latent(layer: nn.Module) -> Tensor:
    """Return the weight that a layer rounds: its own, or what it makes of that."""
    made = getattr(layer, "made_weight", None)
    return (layer.weight if made is None else made()).detach()


def channels_of(layer: nn.Module) -> int:
    """Return how many channels a layer makes."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def rows(values: Tensor, layer: nn.Module) -> Tensor:
    """Return values [C] shaped to broadcast over a layer's weight: each element's channel's own."""
    ones = [1] * (layer.weight.ndim - 1)
    if not is_transposed(layer):
        return values.reshape(-1, *ones)
    each = layer.in_channels // layer.groups
    of_group = values.reshape(layer.groups, 1, -1).expand(-1, each, -1)
    return of_group.reshape(layer.in_channels, -1, *ones[1:])


def in_channels_that(wrong: Tensor, layer: nn.Module) -> Tensor:
    """Return bool [C]: the channels in which any element of a weight is wrong."""
    places = rows(torch.arange(channels_of(layer)), layer).expand(wrong.shape)
    return torch.bincount(places[wrong], minlength=channels_of(layer)) > 0


def product(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Return what a layer makes of an input and a weight, without bias, in float64."""
    x, weight = x.double(), weight.double()
    if isinstance(layer, nn.Linear):
        return x @ weight.mT
    size = len(layer.stride)
    if is_transposed(layer):
        made = getattr(F, f"conv_transpose{size}d")
        around = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        return made(x, weight, None, *around)
    padding: str | tuple[int, ...] = layer.padding
    if layer.padding_mode != "zeros":
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding = 0
    made = getattr(F, f"conv{size}d")
    return made(x, weight, None, layer.stride, padding, layer.dilation, layer.groups)


def along_channels(layer: nn.Module, values: Tensor) -> Tensor:
    """Return values [C] shaped to broadcast over a layer's output."""
    after = 0 if isinstance(layer, nn.Linear) else len(layer.stride)
    return values.double().reshape(-1, *[1] * after)


def squashed(weight: Tensor, rule: str) -> Tensor:
    """Return a weight as rounding sees it: tanh(w) / max|tanh(w)| for dorefa."""
    if rule != "dorefa":
        return weight
    return torch.tanh(weight) / torch.tanh(weight).abs().max()


def load_trained(model: nn.Module, prepared: State) -> None:
    """Give a float network the trained parameters and statistics, every one of them.

    Raises:
        RuntimeError: If one is missing, or is not the network's.
    """
    quantizers = (".weight_quantizer.", ".input_quantizer.", ".quantizers.")
    own = OrderedDict(
        (k, v) for k, v in prepared.items() if not any(q in f".{k}" for q in quantizers)
    )
    own._metadata = getattr(prepared, "_metadata", {})  # versions, which some modules ask for
    model.load_state_dict(own)


def integer_forward(layer: nn.Module, spec: object, state: State, name: str) -> Callable:
    """Return y = (conv(q_x - z_x, codes) + bias) s_x s_w from what conversion stored."""
    at = f"{name}." if name else ""
    codes, bias = state[f"{at}codes"], state.get(f"{at}bias")
    weight_scale = state.get(f"{at}weight_scale")

    def forward(self: nn.Module, input: Tensor) -> Tensor:
        x, scale = input, torch.ones((), dtype=torch.float64)
        if spec.input_bits is not None:
            step = state[f"{at}input_scale"].double()
            zero = float(state[f"{at}input_zero_point"])
            if spec.input_grid == "mid_rise":  # codes 2q - 1 in units of half a step
                step = 2 * step
            up = spec.input_rounding == "ceil"
            x = on_grid(x, step, spec.input_bits, spec.input_grid, zero=zero, up=up)
            scale = scale * step
        made = product(self, x, codes)
        weights = torch.ones(channels_of(self)) if weight_scale is None else weight_scale
        made = made * along_channels(self, scale * weights.double())
        if bias is not None:
            unit = 1.0
            if spec.bias == "int32":
                unit = state[f"{at}input_scale"].double() * weights.double()
            made = made + along_channels(self, bias.double() * unit)
        return made.float()

    return MethodType(forward, layer)


def fake_forward(layer: nn.Module, spec: object, prepared: State, rule: str) -> Callable:
    """Return conv(x_hat, w_hat) + b from the trained scales and the latent weight."""
    at = f"{spec.name}." if spec.name else ""

    def forward(self: nn.Module, input: Tensor) -> Tensor:
        x, weight = input, latent(self)
        if spec.weight_bits is not None:
            step = used(prepared[f"{at}weight_quantizer.scale"])
            step = rows(step, self) if step.ndim else step
            seen = squashed(weight, rule)
            weight = on_grid(seen, step, spec.weight_bits, spec.weight_grid) * step.double()
        if spec.input_bits is not None and not spec.input_from:
            step = used(prepared[f"{at}input_quantizer.scale"])
            zero = float(prepared[f"{at}input_quantizer.zero_point"])
            up = spec.input_rounding == "ceil"
            x = on_grid(x, step, spec.input_bits, spec.input_grid, zero=zero, up=up)
            x = x * step.double()
        made = product(self, x, weight)
        if self.bias is not None:
            made = made + along_channels(self, self.bias.detach())
        return made.float()

    return MethodType(forward, layer)


def relu_forward(relu: nn.Module, spec: object, steps: list[Tensor]) -> Callable:
    """Return a ReLU whose output is put on a grid, one for each of its calls in a pass."""
    relu.calls = 0

    def forward(self: nn.Module, input: Tensor) -> Tensor:
        x, index, self.calls = input, self.calls, self.calls + 1
        if index >= len(spec.calls) or spec.calls[index].bits is None:
            return F.relu(x)
        call, step = spec.calls[index], steps[index]
        made = on_grid(F.relu(x), step, call.bits, call.grid, up=call.rounding == "ceil")
        return (made * step.double()).float()

    return MethodType(forward, relu)


def integer_meaning(model: nn.Module, integer: nn.Module) -> nn.Module:
    """Make a trained float network compute what an integer model says that it is."""
    told, state = integer.qtool, integer.state_dict()
    for spec in told.layers:
        layer = model.get_submodule(spec.name)
        layer.forward = integer_forward(layer, spec, state, spec.name)
        if spec.batch_norm is not None:
            norm = model.get_submodule(spec.batch_norm)
            norm.forward = MethodType(lambda self, input: input, norm)
    for spec in told.relus:
        relu = model.get_submodule(spec.name)
        relu.forward = relu_forward(relu, spec, list(state[f"{spec.name}.scales"]))
    return counting_anew(model, told.relus)


def fake_meaning(model: nn.Module, prepared: State, told: object, rules: dict) -> nn.Module:
    """Make a trained float network compute what a fake-quantized one is to compute."""
    for spec in told.layers:
        layer = model.get_submodule(spec.name)
        layer.forward = fake_forward(layer, spec, prepared, rules[spec.name])
    for spec in told.relus:
        relu = model.get_submodule(spec.name)
        steps = [
            used(prepared.get(f"{spec.name}.quantizers.{call}.scale", torch.ones(())))
            for call in range(len(spec.calls))
        ]
        relu.forward = relu_forward(relu, spec, steps)
    return counting_anew(model, told.relus)


def counting_anew(model: nn.Module, relus: Iterable[object]) -> nn.Module:
    """Let ReLUs count their calls from 0 in each pass."""
    modules = [model.get_submodule(spec.name) for spec in relus]

    def restart(model: nn.Module, args: object) -> None:
        for module in modules:
            module.calls = 0

    model.register_forward_pre_hook(restart)
    return model


def wrong_tensors(model: nn.Module, prepared: State, integer: nn.Module, rules: dict) -> list[str]:
    """Return where codes, scales or biases are not those of the trained parameters.

    Args:
        model: the float network with the trained parameters; a weight that something makes of
            others is made by the pass that it is given before.
        prepared: the state of the fake-quantized network.
        integer: its integer model.
        rules: layer -> the range rule of its weight.
    """
    found, state = [], integer.state_dict()
    for spec in integer.qtool.layers:
        at = f"{spec.name}." if spec.name else ""
        layer, codes = model.get_submodule(spec.name), state[f"{at}codes"]
        weight = latent(layer)
        gain, shift = folded(model, spec, layer)
        found += wrong_input(spec, state, prepared, at)
        if spec.weight_bits is None:
            if not torch.equal(codes, weight):
                found.append(f"{spec.name}: its float weight changed")
            continue
        step = used(prepared[f"{at}weight_quantizer.scale"])
        steps = on_grid(
            squashed(weight, rules[spec.name]),
            rows(step, layer) if step.ndim else step,
            spec.weight_bits,
            spec.weight_grid,
        )
        unit = 2 if spec.weight_grid == "mid_rise" else 1
        expected = unit * steps * rows(torch.where(gain < 0, -1.0, 1.0), layer)
        differ = in_channels_that(codes.double() != expected, layer)
        if spec.rewritten:  # a channel that is its bias alone
            differ &= in_channels_that(codes != 0, layer)
        if bool(differ.any()):
            found.append(f"{spec.name}: codes differ in channels {differ.nonzero().flatten()}")
        scale = step.double().reshape(-1).expand(channels_of(layer)) * gain.abs() / unit
        stored = state[f"{at}weight_scale"].double()
        wrong = (stored - scale).abs() > 1e-6 * scale.abs()
        if bool(wrong.any()) and not spec.rewritten:
            found.append(f"{spec.name}: scales {stored[wrong]} instead of {scale[wrong]}")
        found += wrong_bias(spec, state, at, shift, stored)
    return found


def wrong_input(spec: object, state: State, prepared: State, at: str) -> list[str]:
    """Return what is wrong with the scale of an input's codes, or with its zero point."""
    if spec.input_bits is None or spec.input_from:
        return []
    scale = used(prepared[f"{at}input_quantizer.scale"])
    scale = scale / 2 if spec.input_grid == "mid_rise" else scale
    if not torch.equal(state[f"{at}input_scale"], scale):
        return [f"{spec.name}: the input's scale {state[f'{at}input_scale']} instead of {scale}"]
    zero = prepared[f"{at}input_quantizer.zero_point"].round()
    wrong = float(state[f"{at}input_zero_point"]) != float(zero)
    return [f"{spec.name}: the input's zero point is not {zero}"] if wrong else []


def folded(model: nn.Module, spec: object, layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return gain and shift [C] of a layer's output, the bias and a folded norm in one."""
    bias = torch.zeros(channels_of(layer)) if layer.bias is None else layer.bias.detach()
    if spec.batch_norm is None:
        return torch.ones(channels_of(layer), dtype=torch.float64), bias.double()
    norm = model.get_submodule(spec.batch_norm).double().eval()
    like = (1, -1, *[1] * (layer.weight.ndim - 2))
    zero, one = torch.zeros(len(bias)).double(), torch.ones(len(bias)).double()
    with torch.no_grad():  # what it makes of 0 and of 1 says all of an affine map
        at_zero, at_one = (norm(value.reshape(like)).flatten() for value in (zero, one))
        norm.float()
    return at_one - at_zero, at_zero + (at_one - at_zero) * bias.double()


def wrong_bias(spec: object, state: State, at: str, bias: Tensor, scale: Tensor) -> list[str]:
    """Return what is wrong with a stored bias."""
    stored = state.get(f"{at}bias")
    if stored is None:
        return [f"{spec.name}: its bias is gone"] if bool(bias.any()) else []
    if spec.bias == "int32":
        unit = scale * state[f"{at}input_scale"].double()
        room, given = 0.5001 * unit + 1e-6 * bias.abs(), stored.double() * unit
    else:
        room, given = 1e-5 * bias.abs().max() + 1e-9, stored.double()
    if bool(((given - bias).abs() > room).any()):
        return [f"{spec.name}: bias {given} instead of {bias}"]
    return []
