"""A grammar of random networks: a list of operators with numbers, and the network that they make.

Every list makes a network: an operator that does not fit where it stands, such as a pooling of one
pixel, passes its input on. What is drawn is plain data, so that a failure can be written down.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.network import CLASSES, Network, images

Step = tuple[str, int]  # an operator, and a number that it takes its choices from
Apply = Callable[["Drawn", Tensor], Tensor]
Operator = Callable[["Drawn", int], Apply]
OPERATORS: dict[str, Operator] = {}
SIZE = 8


@dataclass(frozen=True)
class Program:
    """What is drawn of a network.

    Attributes:
        steps: operators in order.
        ending: which of the endings gives logits.
        seed: of its parameters.
        quantization: its recipe.
    """

    steps: tuple[Step, ...]
    ending: int
    seed: int
    quantization: dict[str, object]

    def network(self) -> Network:
        """Return the network as one of the zoo's."""
        return Network(
            "drawn", "drawn", lambda: Drawn(self.steps, self.ending), images(), "logits", self.seed
        )


class Drawn(nn.Module):
    """A network of drawn operators.

    Attributes:
        channels, size: of the map [N, channels, size, size] at the point where it is being built.
        kept: earlier maps of the pass that runs, which later operators may read.
    """

    def __init__(self, steps: tuple[Step, ...], ending: int) -> None:
        super().__init__()
        self.channels, self.size = 3, SIZE
        self.shapes = [(3, SIZE)]
        self.layers = nn.ModuleList()
        self.flow: list[Apply] = []
        for name, number in steps:
            self.flow.append(OPERATORS[name](self, number))
            self.shapes.append((self.channels, self.size))
        self.flow.append(finish(self, ending))

    def add(self, layer: nn.Module) -> int:
        """Keep a layer; return its place."""
        self.layers.append(layer)
        return len(self.layers) - 1

    def forward(self, x: Tensor) -> Tensor:
        self.kept = [x]
        for apply in self.flow:
            x = apply(self, x)
            self.kept.append(x)
        del self.kept
        return x


def passes(net: Drawn, x: Tensor) -> Tensor:
    """Return x: what an operator does that does not fit."""
    return x


def finish(net: Drawn, ending: int) -> Apply:
    """Return what makes logits of the last map."""
    if ending % 3 == 0:
        place = net.add(nn.Linear(net.channels, CLASSES))
        return lambda net, x: net.layers[place](x.mean((2, 3)))
    if ending % 3 == 1:
        hidden = net.add(nn.Sequential(nn.Linear(4 * net.channels, 8), nn.ReLU()))
        place = net.add(nn.Linear(8, CLASSES))

        def classify(net: Drawn, x: Tensor) -> Tensor:
            x = F.adaptive_avg_pool2d(x, 2).flatten(1)
            return net.layers[place](net.layers[hidden](x))

        return classify
    place = net.add(nn.Conv2d(net.channels, CLASSES, 1))
    return lambda net, x: net.layers[place](x).mean((2, 3))


def operator(build: Operator) -> Operator:
    """List an operator under its own name."""
    OPERATORS[build.__name__] = build
    return build


def put(net: Drawn, layer: nn.Module) -> Apply:
    """Keep a layer, and apply it."""
    place = net.add(layer)
    return lambda net, x: net.layers[place](x)


@operator
def convolution(net: Drawn, number: int) -> Apply:
    given, stride = net.channels, 2 if number % 4 == 0 and net.size > 2 else 1
    net.channels, net.size = (4, 6, 8)[number % 3], -(-net.size // stride)
    kernel = (3, 1)[number % 2]
    layer = nn.Conv2d(
        given, net.channels, kernel, stride, kernel // 2, bias=number % 5 > 1, padding_mode="zeros"
    )
    return put(net, layer)


@operator
def convolution_block(net: Drawn, number: int) -> Apply:
    given, net.channels = net.channels, (4, 6, 8)[number % 3]
    mode = ("zeros", "reflect", "circular")[number // 3 % 3] if net.size > 2 else "zeros"
    layer = nn.Conv2d(given, net.channels, 3, 1, 1, bias=False, padding_mode=mode)
    norm, active = nn.BatchNorm2d(net.channels), nn.ReLU(inplace=number % 2 == 0)
    return put(net, nn.Sequential(layer, norm, active))


@operator
def dilated(net: Drawn, number: int) -> Apply:
    return put(net, nn.Conv2d(net.channels, net.channels, 3, padding=2, dilation=2))


@operator
def depthwise(net: Drawn, number: int) -> Apply:
    c = net.channels
    return put(net, nn.Conv2d(c, c, 3, padding=1, groups=c, bias=number % 2 == 0))


@operator
def grouped(net: Drawn, number: int) -> Apply:
    groups = 2 if net.channels % 2 == 0 else 1
    return put(net, nn.Conv2d(net.channels, net.channels, 3, padding=1, groups=groups))


@operator
def linear(net: Drawn, number: int) -> Apply:
    given, net.channels = net.channels, (4, 8)[number % 2]
    place = net.add(nn.Linear(given, net.channels, bias=number % 3 > 0))
    return lambda net, x: net.layers[place](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@operator
def own_kernel(net: Drawn, number: int) -> Apply:
    name = f"kernel{len(net.flow)}"
    net.register_parameter(name, nn.Parameter(torch.randn(net.channels, net.channels, 1, 1) / 2))
    return lambda net, x: F.conv2d(x, getattr(net, name))


@operator
def shared(net: Drawn, number: int) -> Apply:
    fits = [
        place
        for place, layer in enumerate(net.layers)
        if isinstance(layer, nn.Conv2d)
        and layer.in_channels == layer.out_channels == net.channels
        and layer.stride == (1, 1)
    ]
    if not fits:
        return passes
    place = fits[number % len(fits)]
    return lambda net, x: net.layers[place](x)


@operator
def batch_norm(net: Drawn, number: int) -> Apply:
    return put(net, nn.BatchNorm2d(net.channels, affine=number % 3 > 0))


@operator
def group_norm(net: Drawn, number: int) -> Apply:
    return put(net, nn.GroupNorm(2 if net.channels % 2 == 0 else 1, net.channels))


@operator
def layer_norm(net: Drawn, number: int) -> Apply:
    place = net.add(nn.LayerNorm(net.channels))
    return lambda net, x: net.layers[place](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@operator
def relu(net: Drawn, number: int) -> Apply:
    return put(net, nn.ReLU())


@operator
def relu_function(net: Drawn, number: int) -> Apply:
    return (lambda net, x: F.relu(x), lambda net, x: x.clamp_min(0))[number % 2]


@operator
def relu_in_place(net: Drawn, number: int) -> Apply:
    place = net.add(nn.ReLU(inplace=True))
    return lambda net, x: net.layers[place](x + 0)


@operator
def relu6(net: Drawn, number: int) -> Apply:
    return put(net, nn.ReLU6())


@operator
def hardswish(net: Drawn, number: int) -> Apply:
    return put(net, nn.Hardswish())


@operator
def silu(net: Drawn, number: int) -> Apply:
    return (lambda net, x: F.silu(x), lambda net, x: F.gelu(x))[number % 2]


@operator
def gate(net: Drawn, number: int) -> Apply:
    place = net.add(nn.Conv2d(net.channels, net.channels, 1))
    return lambda net, x: x * torch.sigmoid(net.layers[place](x.mean((2, 3), keepdim=True)))


def earlier(net: Drawn, number: int, *, any_channels: bool = False) -> int | None:
    """Return the place of an earlier map of this size, if there is one."""
    here = (net.channels, net.size)
    fits = [
        place
        for place, (c, size) in enumerate(net.shapes)
        if size == here[1] and (any_channels or c == here[0])
    ]
    return fits[number % len(fits)] if fits else None


@operator
def add(net: Drawn, number: int) -> Apply:
    place = earlier(net, number)
    return passes if place is None else lambda net, x: x + net.kept[place]


@operator
def multiply(net: Drawn, number: int) -> Apply:
    place = earlier(net, number)
    return passes if place is None else lambda net, x: x * torch.tanh(net.kept[place])


@operator
def concatenate(net: Drawn, number: int) -> Apply:
    place = earlier(net, number, any_channels=True)
    if place is None or net.channels + net.shapes[place][0] > 12:
        return passes
    net.channels += net.shapes[place][0]
    return lambda net, x: torch.cat([x, net.kept[place]], 1)


@operator
def chunk(net: Drawn, number: int) -> Apply:
    if net.channels % 2 or net.channels < 4:
        return passes
    net.channels //= 2

    def halves(net: Drawn, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return left + right if number % 2 else left * torch.sigmoid(right)

    return halves


@operator
def slice_of_channels(net: Drawn, number: int) -> Apply:
    if net.channels < 4:
        return passes
    net.channels -= 2
    return lambda net, x: x[:, 2:]


@operator
def max_pool(net: Drawn, number: int) -> Apply:
    if net.size < 4:
        return passes
    net.size //= 2
    return put(net, nn.MaxPool2d(2))


@operator
def average_pool(net: Drawn, number: int) -> Apply:
    if net.size < 4:
        return passes
    net.size //= 2
    return lambda net, x: F.avg_pool2d(x, 2)


@operator
def upsample(net: Drawn, number: int) -> Apply:
    if net.size > 4:
        return passes
    net.size *= 2
    return lambda net, x: F.interpolate(x, scale_factor=2.0, mode="nearest")


@operator
def dropout(net: Drawn, number: int) -> Apply:
    return put(net, nn.Dropout(0.2))


@operator
def shuffle(net: Drawn, number: int) -> Apply:
    return put(net, nn.ChannelShuffle(2)) if net.channels % 2 == 0 else passes


@operator
def transpose(net: Drawn, number: int) -> Apply:
    return lambda net, x: x.transpose(2, 3)


@operator
def attention(net: Drawn, number: int) -> Apply:
    place = net.add(nn.Linear(net.channels, 3 * net.channels))

    def attend(net: Drawn, x: Tensor) -> Tensor:
        q, k, v = net.layers[place](x.flatten(2).transpose(1, 2)).chunk(3, -1)
        made = torch.softmax(q @ k.transpose(1, 2) / 2, -1) @ v
        return x + made.transpose(1, 2).unflatten(2, x.shape[2:])

    return attend


@operator
def change_in_place(net: Drawn, number: int) -> Apply:
    def change(net: Drawn, x: Tensor) -> Tensor:
        x = x * 1.5
        if number % 2:
            x[:, :1] += 0.25
        return x.add_(0.125)

    return change
