"""Forward passes of functions, with parameters of their own or those of layers."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.network import CLASSES, Net, block, conv, head, images, pooled, vectors, zoo


@zoo("functional", images())
def relu_and_pooling():
    def flow(net, x):
        x = F.max_pool2d(F.relu(net.conv1(x)), 2)
        x = F.dropout(F.relu(net.conv2(x)), 0.1, training=net.training)
        return net.head(torch.flatten(F.adaptive_avg_pool2d(x, 2), 1))

    return Net(flow, conv1=conv(3, 6), conv2=conv(6, 6), head=head(24))


@zoo("functional", vectors())
def linear_by_its_weight():
    def flow(net, x):
        x = F.linear(net.stem(x).relu(), net.hidden.weight, net.hidden.bias).relu()
        return net.head(x)

    return Net(flow, stem=nn.Linear(6, 8), hidden=nn.Linear(8, 8), head=head(8))


@zoo("functional", images())
class OwnKernel(nn.Module):
    """A convolution by a function, with a parameter of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 6), head(6)
        self.kernel = nn.Parameter(torch.randn(6, 6, 3, 3) / 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(F.conv2d(self.stem(x).relu(), self.kernel, padding=1).relu()))


class OwnLinear(nn.Module):
    """x W^T + b with parameters of its own."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(made, given) / given**0.5)
        self.shift = nn.Parameter(torch.zeros(made))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix, self.shift)


@zoo("functional", images())
def own_linear_layer():
    def flow(net, x):
        return net.head(net.hidden(pooled(net.stem(x))).relu())

    return Net(flow, stem=block(3, 6), hidden=OwnLinear(6, 8), head=head(8))


@zoo("functional", images())
def concatenated():
    def flow(net, x):
        x = net.stem(x)
        x = torch.cat([x, net.conv1(x).relu()], 1)
        x = torch.cat([x, net.conv2(x).relu()], 1)
        return net.head(pooled(x))

    return Net(flow, stem=block(3, 4), conv1=conv(4, 4), conv2=conv(8, 4), head=head(12))


@zoo("functional", images())
class Einsum(nn.Module):
    """Channels mixed by einsum, between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last, self.head = block(3, 6), conv(6, 6), head(6)
        self.mix = nn.Parameter(torch.randn(6, 6) / 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("bchw,oc->bohw", self.stem(x), self.mix).relu()
        return self.head(pooled(self.last(x).relu()))


@zoo("functional", vectors())
def product_with_a_transposed_weight():
    def flow(net, x):
        x = net.stem(x).relu() @ net.hidden.weight.t() + net.hidden.bias
        return net.head(x.relu())

    return Net(flow, stem=nn.Linear(6, 8), hidden=nn.Linear(8, 8), head=head(8))


@zoo("functional", images())
class NormByFunction(nn.Module):
    """F.batch_norm with buffers and parameters of the model."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = conv(3, 6, bias=False), conv(6, 6), head(6)
        self.gamma, self.beta = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.zeros(6))
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("variance", torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            self.conv1(x), self.mean, self.variance, self.gamma, self.beta, self.training
        )
        return self.head(pooled(self.conv2(x.relu()).relu()))


class LowRank(nn.Module):
    """A linear layer, and a product of two small matrices beside it (LoRA)."""

    def __init__(self, given: int, made: int, rank: int = 2) -> None:
        super().__init__()
        self.layer = nn.Linear(given, made)
        self.down = nn.Parameter(torch.randn(rank, given) / given**0.5)
        self.up = nn.Parameter(torch.randn(made, rank) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x @ self.down.t() @ self.up.t()


@zoo("functional", vectors())
def low_rank_adapters():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), LowRank(8, 8), nn.ReLU(), head(8))


@zoo("functional", images())
class CosineClassifier(nn.Module):
    """Logits are cosines of the features and the rows of a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(3, 6), block(6, 8, stride=2))
        self.fc = nn.Linear(8, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(pooled(self.body(x)), dim=1)
        return 4 * F.linear(x, F.normalize(self.fc.weight, dim=1))
