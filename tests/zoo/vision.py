"""Small forms of well-known vision networks, most of torchvision's own blocks."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.convnext import CNBlock
from torchvision.models.densenet import _DenseBlock, _Transition
from torchvision.models.googlenet import Inception
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidual3
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.shufflenetv2 import InvertedResidual as ShuffleUnit
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from tests.zoo.network import Net, block, conv, head, images, pooled, zoo


def classifier(*layers: nn.Module, channels: int) -> nn.Sequential:
    """Return layers with a stem before them, and a head on the mean of what they make."""
    return nn.Sequential(
        Conv2dNormActivation(3, 8), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head(channels)
    )


@zoo("vision", images())
def residual_blocks():
    down = nn.Sequential(conv(8, 16, 1, stride=2, bias=False), nn.BatchNorm2d(16))
    return classifier(BasicBlock(8, 8), Bottleneck(8, 4, 2, down), channels=16)


@zoo("vision", images(), "values")
def u_net():
    def flow(net, x):
        fine = net.enter(x)
        deep = net.down(F.max_pool2d(fine, 2))
        up = F.interpolate(deep, scale_factor=2.0, mode="nearest")
        return net.out(net.up(torch.cat([fine, up], 1)))

    return Net(flow, enter=block(3, 6), down=block(6, 8), up=block(14, 6), out=conv(6, 2, 1))


@zoo("vision", images())
def squeeze_and_excitation():
    return classifier(
        Conv2dNormActivation(8, 8, activation_layer=nn.SiLU), SqueezeExcitation(8, 4), channels=8
    )


@zoo("vision", images())
def inverted_residuals():
    return classifier(InvertedResidual(8, 8, 1, 2), InvertedResidual(8, 6, 2, 2), channels=6)


@zoo("vision", images())
def dense_block():
    dense = _DenseBlock(num_layers=2, num_input_features=8, bn_size=1, growth_rate=4, drop_rate=0.0)
    return classifier(dense, _Transition(16, 6), nn.BatchNorm2d(6), nn.ReLU(), channels=6)


@zoo("vision", images())
def shuffle_units():
    return classifier(ShuffleUnit(8, 8, 1), ShuffleUnit(8, 12, 2), channels=12)


@zoo("vision", images())
def inception():
    return classifier(Inception(8, 2, 2, 4, 2, 2, 2), channels=10)


@zoo("vision", images())
def hardswish_and_hardsigmoid():
    first = InvertedResidualConfig(8, 3, 12, 8, True, "HS", 1, 1, 1.0)
    second = InvertedResidualConfig(8, 3, 12, 8, False, "RE", 2, 1, 1.0)
    blocks = [InvertedResidual3(c, nn.BatchNorm2d) for c in (first, second)]
    return classifier(*blocks, channels=8)


@zoo("vision", images(), "values")
def segmentation():
    def flow(net, x):
        low = net.body(x)
        high = net.deep(low)
        size = x.shape[-2:]
        out, aux = net.classifier(high), net.aux_classifier(low)
        return {
            "out": F.interpolate(out, size=size, mode="bilinear", align_corners=False),
            "aux": F.interpolate(aux, size=size, mode="bilinear", align_corners=False),
        }

    return Net(
        flow,
        body=block(3, 6, stride=2),
        deep=block(6, 6, padding=2, dilation=2),
        classifier=nn.Sequential(block(6, 4), nn.Dropout(0.1), conv(4, 3, 1)),
        aux_classifier=conv(6, 3, 1),
    )


@zoo("vision", images(), "values")
def convnext_and_a_box():
    def flow(net, x):
        x = net.body(net.stem(x))
        return torch.sigmoid(net.box(pooled(x)))

    body = nn.Sequential(CNBlock(8, 0.5, 0.0), CNBlock(8, 0.5, 0.1))
    return Net(flow, stem=nn.Conv2d(3, 8, 2, 2), body=body, box=nn.Linear(8, 4))
