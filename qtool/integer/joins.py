"""What stands at the call sites of an integer model, and computes in codes.

Values travel as real numbers on a grid: each join takes their codes, which are exact, computes by
the formula of ONNX Runtime's kernel, in float32 as that does, and returns real numbers of its own
grid. `z` is added before it is rounded where the kernel does so: for ties the other order differs
when z is odd.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.graph.inputs import tensors_in
from qtool.graph.swap import Part
from qtool.integer.site_specs import SiteKind, SiteSpec, round_to_values
from qtool.numerics.on_grid import OnGrid

Function = Callable[..., object]
Args = tuple[object, ...]
Kwargs = Mapping[str, object]
BYTE_ORIGIN = 128  # a signed grid's codes travel as bytes around it
GATE_LEVELS = 255  # codes of what lies in 0..1 are worth 1 / 255 each, and have zero point 0


class AtSite(Part, ABC):
    """What stands at a site of an integer model.

    Attributes:
        spec: what it is, apart from its tensors.
        scale: float32 [], of its result's codes; absent where it passes a value on.
        zero_point: int32 [], likewise.
        input_scales, input_zero_points: float32 [K] and int32 [K], of its operands' codes; absent
            where those are float.
    """

    maker = "qtool.convert"

    scale: Tensor
    zero_point: Tensor
    input_scales: Tensor
    input_zero_points: Tensor

    def __init__(self, spec: SiteSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.output is not None:
            self.register_buffer("scale", torch.ones(()))
            self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        if count := len(spec.inputs):
            self.register_buffer("input_scales", torch.ones(count))
            self.register_buffer("input_zero_points", torch.zeros(count, dtype=torch.int32))

    @abstractmethod
    def at(self, function: Function, args: Args, kwargs: Kwargs) -> object:
        """Return what the call of `function` on these arguments gives."""

    @property
    def output(self) -> OnGrid:
        """Return grid, scale and zero point of its result.

        Raises:
            AttributeError: If it passes values on, and has none; torch.jit.trace asks for all.
        """
        if self.spec.output is None:
            raise AttributeError(f"{self.spec.site} passes values on, and has no grid of its own")
        return self.spec.output.on_grid(self.scale, self.zero_point)

    @property
    def inputs(self) -> list[OnGrid]:
        """Return grid, scale and zero point of each operand."""
        scales, zeros = self.input_scales, self.input_zero_points
        return [spec.on_grid(scales[n], zeros[n]) for n, spec in enumerate(self.spec.inputs)]

    def steps(self, args: Args, kwargs: Kwargs) -> Iterator[Tensor]:
        """Yield code - z of each operand: integers, float32, in the shapes of the operands."""
        for given, x in zip(self.inputs, tensors_in((args, dict(kwargs))), strict=True):
            yield given.codes(x.float()) - given.zero_point

    def rounded(self, steps: Tensor) -> Tensor:
        """Return the values of its grid next to so many of its steps, float32, same shape."""
        ends, output = self.spec.output, self.output
        assert ends is not None
        return round_to_values(steps, output, top=ends.top, bottom=ends.bottom)

    def extra_repr(self) -> str:
        """Show what it does and its width in `print(model)`."""
        output = self.spec.output
        return self.spec.kind if output is None else f"{self.spec.kind}, {output.bits} bits"


class Passed(AtSite):
    """A ReLU, clip or gate whose work is done before it: its argument is its result."""

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> object:
        """Return the first tensor among the arguments."""
        return next(tensors_in((args, dict(kwargs))))


class RoundedValue(AtSite):
    """A function that computes in float, or an input of the model, whose result is rounded.

        q = rint(y / s) + z

    What it is given may lie on a grid: QuantizeLinear behind DequantizeLinear computes this, too.
    """

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> object:
        """Return the function's result on the grid; what holds no numbers is left as it is."""
        given = function(*args, **kwargs)
        return self.forward(given) if isinstance(given, Tensor) else given

    def forward(self, x: Tensor) -> Tensor:
        """Return real values on the grid, float32, same shape."""
        if not x.is_floating_point():
            return x
        return self.rounded(torch.div(x.float(), self.output.step))


class IntegerAdd(AtSite):
    """q = rint(fma(a, r_a, fma(b, r_b, f))), f = z - fma(r_a, z_a, r_b z_b), r_x = f32(s_x / s).

    Codes and zero points are bytes here, as the kernel has them. Its fused products are rounded
    once: in float64, which holds them exactly, and then to float32.
    """

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the sum of two operands, one of which may broadcast over the other."""
        zero = self.zero_point + _origin(self.output)
        zero_a, zero_b = (given.zero_point + _origin(given) for given in self.inputs)
        a, b = self.steps(args, kwargs)
        by_a, by_b = self.input_scales / self.output.step
        fixed = zero.float() - _fused(zero_a, by_a, by_b * zero_b)
        total = _fused(a + zero_a, by_a, _fused(b + zero_b, by_b, fixed))
        # whole steps now, which nothing rounds again
        return self.rounded(total.round_() - zero)


class IntegerMul(AtSite):
    """q = rint((a - z_a) (b - z_b) f32(f32(s_a s_b) / s) + z), with z as bytes have it."""

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the product of two operands, one of which may broadcast over the other."""
        a, b = self.steps(args, kwargs)
        return self.product(a, b, self.input_scales[0], self.input_scales[1])

    def product(self, a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
        """Return the product of two operands in steps of their scales, []."""
        by = (scale_a * scale_b) / self.output.step
        zero = self.zero_point + _origin(self.output)
        return self.rounded(((a * b) * by + zero).round_() - zero)


class IntegerSigmoid(AtSite):
    """q = rint(f32(sigmoid((x - z_x) s_x)) / s) + z."""

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the sigmoid of the operand."""
        (steps,) = self.steps(args, kwargs)
        return self.rounded(_sigmoid(steps * self.input_scales[0]) / self.output.step)


class IntegerSilu(IntegerMul):
    """x sigmoid(x): a sigmoid in codes of 1 / 255, and a product."""

    @property
    def gate_scale(self) -> Tensor:
        """Return the scale of the sigmoid's codes, float32 []; their zero point is 0."""
        return torch.ones_like(self.scale) / GATE_LEVELS

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the SiLU of the operand."""
        (steps,) = self.steps(args, kwargs)
        scale = self.input_scales[0]
        gate = (_sigmoid(steps * scale) / self.gate_scale).round_().clamp_(0, GATE_LEVELS)
        return self.product(steps, gate, scale, self.gate_scale)


class IntegerHardswish(IntegerMul):
    """x hardsigmoid(x), for codes whose zero point k is worth 3 steps of 1: s_x = 3 / k.

    There hardsigmoid(x) = clip(x + 3, 0, 6) / 6 is min(q, 2k) / 2k, exactly.
    """

    @property
    def gate_scale(self) -> Tensor:
        """Return the scale 1 / 2k of the gate's codes, float32 []; their zero point is 0."""
        return 1 / (2 * self.input_zero_points[0]).float()

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the hardswish of the operand."""
        (steps,) = self.steps(args, kwargs)
        zero = self.input_zero_points[0].float()
        gate = torch.minimum(steps + zero, 2 * zero)
        return self.product(steps, gate, self.input_scales[0], self.gate_scale)


class IntegerCat(AtSite):
    """A concatenation: the codes of operands that share its scale and zero point, as they are.

    Those of another grid are rounded again: q = rint((x - z_x) s_x / s) + z.
    """

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the concatenated operands."""
        joined = function(*args, **kwargs)
        assert isinstance(joined, Tensor)
        output = self.output
        return output.values(output.codes(joined.float()))


class IntegerGlobalPool(AtSite):
    """The mean of each channel's H W pixels: q = rint(sum(x - z_x) f32(s_x / f32(s H W))) + z."""

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the pooled operand [B, C, H, W], in the shape that `function` gives it."""
        (steps,) = self.steps(args, kwargs)
        pooled = function(*args, **kwargs)
        assert isinstance(pooled, Tensor)
        # their sum is below 2^24 for images of up to 256 x 256, and is a float32 in the kernel
        total = steps.sum((-2, -1), dtype=torch.float64).float()
        size = steps.shape[-1] * steps.shape[-2]
        by = self.input_scales[0] / (self.output.step * size)
        return self.rounded(total * by).reshape(pooled.shape)


class IntegerPool(AtSite):
    """Average pooling, as a convolution of each channel with codes 1 of scale s_w = 1 / k k.

        q = rint(sum(x - z_x) f32(f32(s_x s_w) / s)) + z

    Pixels around the image count as zeros, as those of a convolution.
    """

    @property
    def weight_scale(self) -> Tensor:
        """Return s_w, float32 []."""
        height, width = self.spec.pair("kernel")
        return torch.ones_like(self.scale) / (height * width)

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the pooled operand."""
        (steps,) = self.steps(args, kwargs)
        kernel, stride, padding = map(self.spec.pair, ("kernel", "stride", "padding"))
        total = F.avg_pool2d(steps, kernel, stride, padding, divisor_override=1)
        return self.rounded(total * ((self.input_scales[0] * self.weight_scale) / self.output.step))


class IntegerNorm(AtSite):
    """A norm that is a gain and a shift of each channel, as a depthwise 1x1 convolution.

        q = rint(((x - z_x) code + bias) f32(f32(s_x s_w) / s)) + z

    Attributes:
        codes: int8 [C], of the gains.
        weight_scale: float32 [C].
        bias: int32 [C], of scale s_x s_w.
    """

    codes: Tensor
    weight_scale: Tensor
    bias: Tensor

    def __init__(self, spec: SiteSpec) -> None:
        super().__init__(spec)
        channels = spec.number("channels")
        self.register_buffer("codes", torch.zeros(channels, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels, dtype=torch.int32))

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the operand [B, C, ...], each channel scaled and shifted."""
        x = next(tensors_in((args, dict(kwargs))))  # statistics and parameters are given, too
        (given,) = self.inputs
        steps = given.codes(x.float()) - given.zero_point
        columns = (-1, *[1] * (x.ndim - 2))
        # the sum may exceed 2^24; as the kernel does, float32 holds it rounded
        total = steps.double() * self.codes.reshape(columns) + self.bias.reshape(columns)
        by = (self.input_scales[0] * self.weight_scale) / self.output.step
        return self.rounded(total.float() * by.reshape(columns))


def _origin(given: OnGrid) -> int:
    """Return what the code 0 of a grid is as a byte."""
    return BYTE_ORIGIN if given.grid.signed else 0


def _fused(x: Tensor, by: Tensor, plus: Tensor) -> Tensor:
    """Return x by + plus, float32, rounded once."""
    return (x.double() * by.double() + plus.double()).float()


def _sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid rounded once, float32: float32 kernels differ from each other."""
    return torch.sigmoid(x.double()).float()


JOINS: dict[SiteKind, type[AtSite]] = {
    "add": IntegerAdd,
    "mul": IntegerMul,
    "cat": IntegerCat,
    "global_pool": IntegerGlobalPool,
    "sigmoid": IntegerSigmoid,
    "hardsigmoid": RoundedValue,
    "silu": IntegerSilu,
    "hardswish": IntegerHardswish,
    "requantize": RoundedValue,
    "rounded": RoundedValue,
    "passed": Passed,
}


def at_site(spec: SiteSpec) -> AtSite:
    """Return what stands at a site, its tensors yet to be filled."""
    if spec.kind == "depthwise":
        return IntegerNorm(spec) if spec.norm else IntegerPool(spec)
    return JOINS[spec.kind](spec)


def integer_sites(model: nn.Module) -> dict[str, AtSite]:
    """Return what stands at sites of an integer model, by the names of its modules."""
    return {n: m for n, m in model.named_modules() if isinstance(m, AtSite)}
