"""Joins that runtimes compute as convolutions of each channel by itself: poolings, norms."""

from dataclasses import replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from qtool.graph.inputs import tensors_in
from qtool.graph.sites.facts import Sizes, facts_of
from qtool.integer.at_site import Args, AtSite, Function, Kwargs
from qtool.integer.site_specs import SiteSpec


class IntegerPool(AtSite):
    """Average pooling, as a convolution of each channel with codes 1 of scale s_w = 1 / (k k).

        q = rint(sum(x - z_x) f32(f32(s_x s_w) / s)) + z

    Pixels around the image count as zeros, as those of a convolution.
    """

    def weight_scale(self, kernel: tuple[int, ...]) -> Tensor:
        """Return s_w, float32 []."""
        return torch.ones_like(self.scale) / prod(kernel)

    def spec_of(self, function: Function, args: Args, kwargs: Kwargs) -> SiteSpec:
        """Return what a call is, whose windows may depend on the size of the image."""
        made = function(*args, **kwargs)
        assert isinstance(made, Tensor)
        facts = facts_of("avg_pool", function, args, kwargs, [made])
        return replace(self.spec, facts={**self.spec.facts, **facts})

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the pooled operand."""
        (steps,) = self.steps(args, kwargs)
        spec = self.spec_of(function, args, kwargs)
        kernel, stride, padding = map(spec.sizes, ("kernel", "stride", "padding"))
        total = _sums(steps, kernel, stride, padding)
        by = (self.input_scales[0] * self.weight_scale(kernel)) / self.output.step
        return self.rounded(total * by)


def _sums(x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes) -> Tensor:
    """Return the sum of the pixels in each window."""
    if len(kernel) == 3:
        return F.avg_pool3d(x, kernel, stride, padding, divisor_override=1)
    if len(kernel) == 1:  # a line of pixels is an image of one row
        row = F.avg_pool2d(
            x.unsqueeze(-2), (1, *kernel), (1, *stride), (0, *padding), divisor_override=1
        )
        return row.squeeze(-2)
    return F.avg_pool2d(x, kernel, stride, padding, divisor_override=1)


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
