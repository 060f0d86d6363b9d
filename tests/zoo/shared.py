"""Layers that run more than once, and layers that share a parameter."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.network import Net, block, conv, head, images, pooled, vectors, zoo


@zoo("shared", images())
def one_convolution_twice():
    def flow(net, x):
        x = F.relu(net.same(F.relu(net.stem(x))))
        return net.head(pooled(F.relu(net.same(x))))

    return Net(flow, stem=conv(3, 6), same=conv(6, 6), head=head(6))


@zoo("shared", images())
class TiedTransposed(nn.Module):
    """A bottleneck whose way back is the transposed weight of the way there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.head = conv(3, 8), nn.Linear(8, 4), head(8)
        self.back = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        x = pooled(self.stem(x).relu())
        low = self.down(x).relu()
        return self.head(x + F.linear(low, self.down.weight.t(), self.back))


@zoo("shared", vectors())
def one_linear_three_times():
    def flow(net, x):
        x = net.stem(x).relu()
        for _ in range(3):
            x = x + net.same(x).relu()
        return net.head(x)

    return Net(flow, stem=nn.Linear(6, 8), same=nn.Linear(8, 8), head=head(8))


@zoo("shared", vectors())
def two_layers_one_parameter():
    def flow(net, x):
        return net.head(net.second(net.first(net.stem(x).relu()).relu()).relu())

    net = Net(flow, stem=nn.Linear(6, 8), first=nn.Linear(8, 8), second=nn.Linear(8, 8))
    net.head = head(8)
    net.second.weight = net.first.weight
    return net


@zoo("shared", images(6))
def siamese():
    def flow(net, x):
        left, right = (pooled(net.encoder(part)) for part in x.chunk(2, 1))
        return net.head((left - right).abs())

    encoder = nn.Sequential(block(3, 6), block(6, 6, stride=2))
    return Net(flow, encoder=encoder, head=head(6))


@zoo("shared", images())
def one_block_at_two_scales():
    def flow(net, x):
        x = net.stem(x)
        small = net.same(F.avg_pool2d(x, 2))
        return net.head(pooled(net.same(x)) + pooled(small))

    return Net(flow, stem=block(3, 6), same=block(6, 6), head=head(6))


@zoo("shared", images())
def one_convolution_two_norms():
    def flow(net, x):
        x = net.stem(x).relu()
        x = net.norm1(net.same(x)).relu()
        return net.head(pooled(net.norm2(net.same(x)).relu()))

    return Net(
        flow,
        stem=conv(3, 6),
        same=conv(6, 6, bias=False),
        norm1=nn.BatchNorm2d(6),
        norm2=nn.BatchNorm2d(6),
        head=head(6),
    )


@zoo("shared", images())
def one_parameter_two_strides():
    def flow(net, x):
        x = net.stem(x).relu()
        fine, coarse = net.norm1(net.fine(x)).relu(), net.norm2(net.coarse(x)).relu()
        return net.head(pooled(fine) + pooled(coarse))

    net = Net(flow, stem=conv(3, 6), fine=conv(6, 6), coarse=conv(6, 6, stride=2))
    net.norm1, net.norm2, net.head = nn.BatchNorm2d(6), nn.BatchNorm2d(6), head(6)
    net.coarse.weight = net.fine.weight
    return net


@zoo("shared", images())
def one_relu_and_one_pooling_everywhere():
    def flow(net, x):
        x = net.pool(net.relu(net.norm1(net.conv1(x))))
        x = net.pool(net.relu(net.norm2(net.conv2(x))))
        return net.head(net.relu(net.hidden(x.flatten(1))))

    return Net(
        flow,
        conv1=conv(3, 6),
        norm1=nn.BatchNorm2d(6),
        conv2=conv(6, 4),
        norm2=nn.BatchNorm2d(4),
        hidden=nn.Linear(16, 8),
        head=head(8),
        relu=nn.ReLU(),
        pool=nn.MaxPool2d(2),
    )


@zoo("shared", images())
def one_head_on_a_pyramid():
    def flow(net, x):
        first = net.first(x)
        second = net.second(first)
        third = net.third(second)
        return sum(net.head(pooled(net.tower(level))) for level in (first, second, third))

    return Net(
        flow,
        first=block(3, 6),
        second=block(6, 6, stride=2),
        third=block(6, 6, stride=2),
        tower=nn.Sequential(conv(6, 6), nn.ReLU(), conv(6, 8), nn.ReLU()),
        head=head(8),
    )
