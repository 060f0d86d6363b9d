"""Modules that stand at more than one place of the model, and models that are a layer."""

import torch
from torch import Tensor, nn

from tests.zoo.network import CLASSES, Net, block, conv, head, images, pooled, vectors, zoo


@zoo("aliased", images())
def convolution_registered_twice():
    def flow(net, x):
        return net.head(pooled(net.again(net.stem(x).relu()).relu()))

    net = Net(flow, stem=conv(3, 6), conv=conv(6, 6))
    net.again, net.head = net.conv, head(6)
    return net


@zoo("aliased", images(), "values")
def root_is_a_convolution():
    return conv(3, 6)


@zoo("aliased", vectors())
def root_is_a_linear_layer():
    return head(6)


@zoo("aliased", images())
class ListAndAttributes(nn.Module):
    """Layers as attributes, and in a list that forward goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = conv(3, 6), conv(6, 6), conv(6, 8, stride=2)
        self.layers = nn.ModuleList([self.conv1, self.conv2, self.conv3])
        self.head = head(8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(pooled(x))


@zoo("aliased", images())
class ListBeforeAttributes(nn.Module):
    """Layers in a list first, and attributes that forward reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(3, 6), nn.BatchNorm2d(6), conv(6, 6)])
        self.conv1, self.norm1, self.conv2 = self.layers
        self.head = head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        return self.head(pooled(self.conv2(x).relu()))


@zoo("aliased", images())
def same_layer_twice_in_a_sequence():
    same, relu = conv(6, 6), nn.ReLU()
    return nn.Sequential(
        conv(3, 6), relu, same, relu, same, relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(6)
    )


@zoo("aliased", images())
def dict_and_attribute():
    def flow(net, x):
        for name in ("stem", "body"):
            x = net.parts[name](x)
        return net.parts["head"](pooled(x))

    net = Net(flow, stem=block(3, 6), body=block(6, 6), head=head(6))
    net.parts = nn.ModuleDict({"stem": net.stem, "body": net.body, "head": net.head})
    return net


@zoo("aliased", images())
def block_in_two_parents():
    shared = block(6, 6)
    encoder = nn.Sequential(block(3, 6), shared)
    teacher = nn.Sequential(shared, conv(6, 8), nn.ReLU())

    def flow(net, x):
        return net.head(pooled(net.teacher(net.encoder(x))))

    return Net(flow, encoder=encoder, teacher=teacher, head=head(8))


@zoo("aliased", images())
def norm_registered_twice():
    def flow(net, x):
        x = net.norms[0](net.conv1(x)).relu()
        return net.head(pooled(net.norms[1](net.conv2(x)).relu()))

    net = Net(flow, conv1=conv(3, 6), norm1=nn.BatchNorm2d(6), conv2=conv(6, 6))
    net.norm2 = nn.BatchNorm2d(6)
    net.norms, net.head = nn.ModuleList([net.norm1, net.norm2]), head(6)
    return net


@zoo("aliased", images())
class FeaturesOfAttributes(nn.Module):
    """A sequence of the model's own attributes, and a classifier by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(6, 6), nn.BatchNorm2d(6)
        self.features = nn.Sequential(
            self.conv1, self.bn1, self.relu, self.conv2, self.bn2, self.relu
        )
        self.fc = nn.Linear(6, CLASSES)
        self.classifier = self.fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
