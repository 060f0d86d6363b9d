"""Activation functions that train, in place of a network's ReLUs.

Each takes the channels of its input and returns a module that works on [B, channels, ...]. To add
one, write a function here, decorate it and put its name into `Activation`: that is its name in
recipes.
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.registry import Registry

Activation = Literal["relu", "rprelu", "piecewise_linear"]
Segments = Annotated[int, Field(ge=1, le=255)]

ACTIVATION_FUNCTIONS: Registry[Callable[..., nn.Module]] = Registry("activation")
RPRELU_SLOPE = 0.25  # as torch.nn.PReLU begins
REACH = 2.0  # the piecewise linear function begins as a clip to 0..2
NARROWEST = 1e-3  # a segment; what is narrower counts as this, and stays


def activation_function(name: Activation, channels: int, segments: int = 3) -> nn.Module:
    """Return an activation function by its name in recipes."""
    params = {"segments": segments} if name == "piecewise_linear" else {}
    return ACTIVATION_FUNCTIONS.build(name, **params)(channels)


@ACTIVATION_FUNCTIONS.add
def relu(channels: int) -> nn.Module:
    """Return max(x, 0)."""
    del channels
    return nn.ReLU()


@ACTIVATION_FUNCTIONS.add
def rprelu(channels: int) -> nn.Module:
    """Return a PReLU with a shift before and one behind it, all learned for each channel.

        y = x - gamma + zeta where x > gamma, else beta (x - gamma) + zeta

    A sign behind it (activations of 1 bit, grid mid_rise) is RSign, whose threshold is then -zeta.

    Reference: ReActNet, Liu et al., 2020, arXiv:2003.03488.
    """
    return RPReLU(channels)


@ACTIVATION_FUNCTIONS.add
def piecewise_linear(channels: int, *, segments: Segments = 3) -> nn.Module:
    """Return a rising function of straight segments, whose widths are learned.

        y = sum_i clip((x - b_i) / a_i, 0, 1),  b_1 = start, b_i+1 = b_i + a_i

    Behind it, rounding in steps of 1 (2^bits - 1 segments, range fixed with scale 1) has unequal
    thresholds b_i + a_i / 2 and equal levels, which integers compute with; the gradient of a
    threshold is that of the paper's generalized straight-through estimator. The paper's factor on
    levels is left to the weights that read them.

    Reference: N2UQ, Liu et al., 2022, arXiv:2111.14826.
    """
    del channels
    return PiecewiseLinear(segments)


class RPReLU(nn.Module):
    """See `rprelu`; shift, slope and offset are gamma, beta and zeta, [channels]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), RPRELU_SLOPE))
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the function of x [B, channels, ...]."""
        shape = [-1] + [1] * (x.ndim - 2)
        return F.prelu(x - self.shift.view(shape), self.slope) + self.offset.view(shape)


class PiecewiseLinear(nn.Module):
    """See `piecewise_linear`; widths are a, [segments], start is b_1, []."""

    def __init__(self, segments: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.zeros(()))
        self.widths = nn.Parameter(torch.full((segments,), REACH / segments))

    def forward(self, x: Tensor) -> Tensor:
        """Return the function of x, of its shape."""
        widths = torch.where(self.widths > NARROWEST, self.widths, NARROWEST)
        begins = self.start
        y = torch.zeros_like(x)
        for index in range(len(self.widths)):
            y = y + ((x - begins) / widths[index]).clamp(0, 1)
            begins = begins + widths[index]
        return y
