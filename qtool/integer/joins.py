"""What stands at the call sites of an integer model, and computes in codes.

Values travel as real numbers on a grid: each join takes their codes, which are exact, computes by
the formula of ONNX Runtime's kernel, in float32 as that does, and returns real numbers of its own
grid. `z` is added before it is rounded where the kernel does so: for ties the other order differs
when z is odd.
"""

from math import prod

import torch
from torch import Tensor, nn

from qtool.integer.at_site import Args, AtSite, Function, Kwargs, Passed, RoundedValue
from qtool.integer.depthwise import IntegerNorm, IntegerPool
from qtool.integer.site_specs import SiteKind, SiteSpec
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.roundings import half_to_even

BYTE_ORIGIN = 128  # a signed grid's codes travel as bytes around it
GATE_LEVELS = 255  # codes of what lies in 0..1 are worth 1 / 255 each, and have zero point 0


class IntegerAdd(AtSite):
    """q = rint(fma(a, r_a, fma(b, r_b, f))), f = z - fma(r_a, z_a, r_b z_b), r_x = f32(s_x / s).

    Codes and zero points are bytes here, as the kernel has them. Its fused products are rounded
    once: in float64, which holds them exactly, and then to float32.
    """

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the sum of two operands, one of which may broadcast over the other."""
        zero = self.zero_point + _origin(self.output)
        origin_a, origin_b = map(_origin, self.inputs)
        zero_a = self.input_zero_points[0] + origin_a
        zero_b = self.input_zero_points[1] + origin_b
        a, b = self.steps(args, kwargs)
        by_a, by_b = self.input_scales / self.output.step
        fixed = zero.float() - _fused(zero_a, by_a, by_b * zero_b)
        total = _fused(a + zero_a, by_a, _fused(b + zero_b, by_b, fixed))
        return _from_zero(self, total, zero)


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
        return _from_zero(self, (a * b) * by + zero, zero)


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
    """The mean of each channel's N pixels: q = rint(sum(x - z_x) f32(s_x / f32(s N))) + z."""

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the pooled operand [B, C, ...], in the shape that `function` gives it."""
        (steps,) = self.steps(args, kwargs)
        pooled = function(*args, **kwargs)
        assert isinstance(pooled, Tensor)
        # their sum is below 2^24 for images of up to 256 x 256, and is a float32 in the kernel
        dims = self.spec.sizes("output") if "output" in self.spec.facts else (1, 1)
        image = tuple(range(-len(dims), 0))
        total = steps.sum(image, dtype=torch.float64).float()
        size = prod(steps.shape[-len(dims) :])
        by = self.input_scales[0] / (self.output.step * size)
        return self.rounded(total * by).reshape(pooled.shape)


def _origin(given: OnGrid) -> int:
    """Return what the code 0 of a grid is as a byte."""
    return BYTE_ORIGIN if given.grid.signed else 0


def _from_zero(join: AtSite, steps: Tensor, zero: Tensor) -> Tensor:
    """Return the values of a join's grid next to `steps - zero`, rounded with `zero` as in bytes.

    Where a grid rounds in another way, no kernel computes it, and zero makes no difference.
    """
    if join.output.rounding is half_to_even and not join.output.grid.offset:
        steps = steps.round_()  # whole steps now, which nothing rounds again
    return join.rounded(steps - zero)


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
