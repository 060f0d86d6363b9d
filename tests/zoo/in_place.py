"""Operations in place: on outputs of layers, on slices and views, and into given tensors."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.network import Net, block, conv, head, images, pooled, zoo


def parts(flow, **more: nn.Module):
    """Return a network of two convolutions and a norm, which `flow` connects."""
    more = {"norm": nn.BatchNorm2d(6), "head": head(6), **more}
    return Net(flow, stem=conv(3, 6), conv=conv(6, 6), **more)


@zoo("in_place", images())
def relu_in_place_of_a_residual():
    def flow(net, x):
        x = net.relu(net.stem(x))
        x = net.relu(net.norm(net.conv(x)) + x)
        return net.head(pooled(x))

    return parts(flow, relu=nn.ReLU(inplace=True))


@zoo("in_place", images())
def scaled_in_place_before_the_norm():
    def flow(net, x):
        y = net.conv(net.stem(x).relu())
        y.mul_(2.5)
        return net.head(pooled(net.norm(y).relu()))

    return parts(flow)


@zoo("in_place", images())
def added_in_place():
    def flow(net, x):
        x = net.stem(x).relu()
        y = net.norm(net.conv(x))
        y += x
        return net.head(pooled(F.relu(y, inplace=True)))

    return parts(flow)


@zoo("in_place", images())
def written_into_a_given_tensor():
    def flow(net, x):
        x = net.stem(x).relu()
        y = net.norm(net.conv(x))
        if net.training:
            y = y + x
        else:
            torch.add(y, x, out=y)
        return net.head(pooled(y.relu()))

    return parts(flow)


@zoo("in_place", images())
def slice_written_before_the_norm():
    def flow(net, x):
        y = net.conv(net.stem(x).relu())
        y[:, :2] = 0.5
        return net.head(pooled(net.norm(y).relu()))

    return parts(flow)


@zoo("in_place", images())
def view_changed_before_the_norm():
    def flow(net, x):
        y = net.conv(net.stem(x).relu())
        y.view(len(x), -1).mul_(0.5)
        return net.head(pooled(net.norm(y).relu()))

    return parts(flow)


@zoo("in_place", images())
def slices_added_in_place():
    def flow(net, x):
        y = net.norm(net.conv(net.stem(x).relu()))
        y[:, :3] += y[:, 3:]
        return net.head(pooled(F.relu_(y)))

    return parts(flow)


@zoo("in_place", images())
def relu_by_masked_fill():
    def flow(net, x):
        y = net.stem(x)
        y.masked_fill_(y < 0, 0.0)
        return net.head(pooled(F.hardtanh_(net.norm(net.conv(y)), 0.0, 6.0)))

    return parts(flow)


@zoo("in_place", images())
def shape_changed_in_place():
    def flow(net, x):
        y = F.adaptive_avg_pool2d(net.body(net.stem(x).relu()), 1)
        y.squeeze_(-1).squeeze_(-1)
        return net.head(y)

    return parts(flow, body=block(6, 6))


@zoo("in_place", images())
class BufferFilled(nn.Module):
    """Branches that are written into slices of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 6), head(8)
        self.branches = nn.ModuleList([conv(6, 4, 1), conv(6, 4, 3)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu_()
        made = x.new_zeros(x.shape[0], 8, *x.shape[2:])
        for i, branch in enumerate(self.branches):
            made[:, 4 * i : 4 * i + 4] = branch(x)
        return self.head(pooled(made.relu()))
