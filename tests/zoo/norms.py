"""Norms of every kind, at the places where they can be folded, and where they cannot."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from tests.zoo.network import Net, conv, head, images, pooled, vectors, zoo


def two(norm1: nn.Module, norm2: nn.Module, **more: object) -> nn.Module:
    """Return two convolutions with a norm behind each."""

    def flow(net, x):
        x = net.norm1(net.conv1(x)).relu()
        return net.head(pooled(net.norm2(net.conv2(x)).relu()))

    parts = {"conv1": conv(3, 6, **more), "conv2": conv(6, 6, **more)}
    return Net(flow, **parts, norm1=norm1, norm2=norm2, head=head(6))


@zoo("norms", images())
def synchronized():
    return two(nn.SyncBatchNorm(6), nn.SyncBatchNorm(6), bias=False)


@zoo("norms", images())
def frozen():
    return two(FrozenBatchNorm2d(6), FrozenBatchNorm2d(6), bias=False)


@zoo("norms", images())
def without_gain_or_momentum():
    return two(nn.BatchNorm2d(6, affine=False), nn.BatchNorm2d(6, momentum=None), bias=False)


@zoo("norms", images())
def without_statistics():
    return two(nn.BatchNorm2d(6, track_running_stats=False), nn.BatchNorm2d(6))


@zoo("norms", images())
def of_groups_and_instances():
    return two(nn.GroupNorm(2, 6), nn.InstanceNorm2d(6, affine=True, track_running_stats=True))


class Affine(nn.Module):
    """A gain and a shift for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain, self.shift = (
            nn.Parameter(torch.rand(channels) + 0.5),
            nn.Parameter(torch.randn(channels) / 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain.view(-1, 1, 1) + self.shift.view(-1, 1, 1)


@zoo("norms", images())
def written_by_oneself():
    return two(Affine(6), nn.BatchNorm2d(6))


@zoo("norms", images())
class OnlyInTraining(nn.Module):
    """A norm that training alone calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1, self.conv2 = conv(3, 6), nn.BatchNorm2d(6), conv(6, 6)
        self.norm2, self.head = nn.BatchNorm2d(6), head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        if self.training:
            x = self.norm1(x)
        return self.head(pooled(self.norm2(self.conv2(x.relu())).relu()))


@zoo("norms", images())
class BeforeTheConvolution(nn.Module):
    """Norms in front of convolutions, one of which has two readers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm0, self.conv1, self.norm1 = nn.BatchNorm2d(3), conv(3, 6), nn.BatchNorm2d(6)
        self.conv2, self.skip, self.head = conv(6, 6), conv(6, 6, 1), head(6)
        self.norm2 = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(self.norm0(x))
        y = self.norm1(x)
        y = self.conv2(y.relu()) + self.skip(y) + x
        return self.head(pooled(self.norm2(y).relu()))


@zoo("norms", lambda rows: torch.randn(rows, 8, 8))
def of_tokens_that_are_as_many_as_features():
    def flow(net, x):
        x = net.norm1(net.linear1(x)).relu()
        x = net.norm2(net.linear2(x).transpose(1, 2)).transpose(1, 2)
        return net.head(F.relu(x).mean(1))

    return Net(
        flow,
        linear1=nn.Linear(8, 8),
        norm1=nn.BatchNorm1d(8),
        linear2=nn.Linear(8, 8),
        norm2=nn.BatchNorm1d(8),
        head=head(8),
    )


@zoo("norms", vectors())
def of_vectors():
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8, affine=False),
        nn.ReLU(),
        nn.LayerNorm(8),
        head(8),
        nn.BatchNorm1d(5),
    )
