"""Convolutions of every kind: transposed, in one and three dimensions, dilated, grouped, padded."""

import torch
from torch import nn

from tests.zoo.network import Net, block, conv, head, images, zoo


def after(*layers: nn.Module, channels: int) -> nn.Sequential:
    """Return layers, and a head on the mean of what they make."""
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(channels))


@zoo("convolutions", images(), "values")
def transposed():
    return nn.Sequential(
        block(3, 6, stride=2),
        nn.ConvTranspose2d(6, 6, 2, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        conv(6, 3),
    )


@zoo("convolutions", images())
def padded_by_reflection():
    return after(
        conv(3, 6, padding_mode="reflect"),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        conv(6, 6, padding_mode="replicate", stride=2),
        nn.ReLU(),
        channels=6,
    )


@zoo("convolutions", lambda rows: torch.randn(rows, 2, 16))
def one_dimension():
    def flow(net, x):
        return net.head(net.hidden(net.body(x).mean(2)).relu())

    body = nn.Sequential(nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6), nn.ReLU())
    return Net(flow, body=body, hidden=nn.Linear(6, 8), head=head(8))


@zoo("convolutions", lambda rows: torch.randn(rows, 1, 4, 8, 8))
def three_dimensions():
    def flow(net, x):
        return net.head(net.hidden(net.body(x).mean((2, 3, 4))).relu())

    body = nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6), nn.ReLU())
    return Net(flow, body=body, hidden=nn.Linear(6, 8), head=head(8))


@zoo("convolutions", images())
def dilated():
    return after(
        conv(3, 6, padding=2, dilation=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        conv(6, 6, padding=3, dilation=3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        channels=6,
    )


@zoo("convolutions", images(4))
def grouped():
    return after(
        conv(4, 8, groups=2),
        nn.ReLU(),
        conv(8, 8, groups=4, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        channels=8,
    )


@zoo("convolutions", images())
def depthwise_separable():
    return after(
        block(3, 6),
        conv(6, 6, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        conv(6, 8, 1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU6(),
        channels=8,
    )


@zoo("convolutions", images())
def padded_around_and_to_the_same_size():
    return after(
        conv(3, 6, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(6, 6, 4, padding="same", dilation=2),
        nn.ReLU(),
        nn.Conv2d(6, 6, 2, padding="same", padding_mode="reflect"),
        nn.ReLU(),
        channels=6,
    )


@zoo("convolutions", images())
def kernels_that_are_not_square():
    return after(
        nn.Conv2d(3, 6, (1, 5), padding=(0, 2), stride=(1, 2)),
        nn.ReLU(),
        nn.Conv2d(6, 6, (5, 1), padding=(2, 0), bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, (2, 3), padding="valid"),
        nn.ReLU(),
        channels=6,
    )


@zoo("convolutions", images())
def unfolded_and_shuffled():
    def flow(net, x):
        x = net.shuffle(net.conv(x).relu())
        x = nn.functional.unfold(x, 4, stride=4).transpose(1, 2)
        return net.head(net.hidden(x).relu().mean(1))

    return Net(
        flow, conv=conv(3, 8), shuffle=nn.PixelShuffle(2), hidden=nn.Linear(32, 8), head=head(8)
    )
