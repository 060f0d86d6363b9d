"""Weights that something else makes, hooks, and layers of one's own."""

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from tests.zoo.network import CLASSES, block, conv, head, images, zoo


def wrapped(wrap, conv2: nn.Module | None = None, **more: object) -> nn.Sequential:
    """Return a network with a wrapped convolution and a wrapped linear layer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the older weight_norm says so
        return nn.Sequential(
            block(3, 6),
            wrap(conv2 or conv(6, 6, **more)),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            wrap(nn.Linear(6, 8)),
            nn.ReLU(),
            head(8),
        )


@zoo("parametrized", images())
def pruned():
    net = wrapped(lambda layer: layer)
    prune.l1_unstructured(net[1], "weight", 0.5)
    prune.ln_structured(net[6], "weight", 0.25, n=2, dim=0)
    return net


@zoo("parametrized", images())
def weight_norm():
    return wrapped(parametrizations.weight_norm)


@zoo("parametrized", images())
def older_weight_norm():
    return wrapped(nn.utils.weight_norm)


@zoo("parametrized", images())
def spectral_norm():
    return wrapped(parametrizations.spectral_norm)


@zoo("parametrized", images())
def older_spectral_norm():
    return wrapped(nn.utils.spectral_norm)


class Centred(nn.Module):
    """A weight whose rows have mean zero."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.flatten(1).mean(1).reshape(-1, *[1] * (weight.ndim - 1))


@zoo("parametrized", images())
def parametrization_of_ones_own():
    def wrap(layer):
        parametrize.register_parametrization(layer, "weight", Centred())
        return layer

    return wrapped(wrap)


@zoo("parametrized", images())
def hooks_that_change_values():
    net = wrapped(lambda layer: layer)
    net[1].register_forward_pre_hook(lambda layer, args: (args[0].clamp(max=1.5),))
    net[1].register_forward_hook(lambda layer, args, made: made * 1.5)
    net[6].register_forward_hook(lambda layer, args, made: made + 0.25)
    return net


class Standardized(nn.Conv2d):
    """A convolution that standardizes its weight."""

    def made_weight(self) -> Tensor:
        flat = self.weight.flatten(1)
        spread = flat.std(1, keepdim=True) + 1e-5
        return ((flat - flat.mean(1, keepdim=True)) / spread).view_as(self.weight) / 4

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.made_weight(), self.bias, self.stride, self.padding)


@zoo("parametrized", images())
def standardized_convolution():
    return wrapped(lambda layer: layer, Standardized(6, 6, 3, padding=1))


class Named(nn.Linear):
    """A linear layer by another name."""


@zoo("parametrized", images())
def subclass_that_changes_nothing():
    return nn.Sequential(block(3, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), Named(6, CLASSES))


@zoo("parametrized", images())
def lazy_layers():
    net = nn.Sequential(
        nn.LazyConv2d(6, 3, padding=1),
        nn.LazyBatchNorm2d(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )
    with torch.no_grad():
        net(torch.randn(2, 3, 8, 8))
    return net
