"""One narrow network of each family of torchvision's classifiers, made by its own constructor."""

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn
from torchvision.models import (
    convnext,
    densenet,
    efficientnet,
    maxvit,
    mobilenetv2,
    mobilenetv3,
    regnet,
    resnet,
    shufflenetv2,
    squeezenet,
    swin_transformer,
    vision_transformer,
)

CLASSES = 5


def _mobilenet_v3() -> nn.Module:
    """Two blocks, one of them with hardswish and squeeze-and-excitation."""
    block = partial(mobilenetv3.InvertedResidualConfig, width_mult=0.5)
    settings = [
        block(16, 3, 16, 16, True, "RE", 2, 1),
        block(16, 5, 32, 24, True, "HS", 2, 1),
        block(24, 5, 48, 24, False, "HS", 1, 1),
    ]
    return mobilenetv3.MobileNetV3(settings, last_channel=32, num_classes=CLASSES)


def _efficientnet() -> nn.Module:
    block = partial(efficientnet.MBConvConfig, width_mult=0.5, depth_mult=1.0)
    settings = [block(1, 3, 1, 16, 16, 1), block(4, 5, 2, 16, 24, 2)]
    return efficientnet.EfficientNet(settings, dropout=0.2, num_classes=CLASSES)


def _regnet() -> nn.Module:
    params = regnet.BlockParams.from_init_params(
        depth=4, w_0=8, w_a=8, w_m=2.0, group_width=4, se_ratio=0.25
    )
    return regnet.RegNet(params, num_classes=CLASSES, stem_width=8)


def _convnext() -> nn.Module:
    settings = [convnext.CNBlockConfig(8, 16, 1), convnext.CNBlockConfig(16, None, 1)]
    return convnext.ConvNeXt(settings, num_classes=CLASSES)


FAMILIES: Mapping[str, Callable[[], nn.Module]] = {
    "resnet": lambda: resnet.ResNet(
        resnet.Bottleneck, [1, 1, 1, 1], num_classes=CLASSES, groups=2, width_per_group=4
    ),
    "mobilenet_v2": lambda: mobilenetv2.MobileNetV2(
        CLASSES, 0.25, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]
    ),
    "mobilenet_v3": _mobilenet_v3,
    "densenet": lambda: densenet.DenseNet(4, (2, 2), 8, num_classes=CLASSES),
    "shufflenet_v2": lambda: shufflenetv2.ShuffleNetV2(
        [2, 2, 1], [8, 16, 32, 64, 64], num_classes=CLASSES
    ),
    "squeezenet": lambda: squeezenet.SqueezeNet("1_1", num_classes=CLASSES),
    "efficientnet": _efficientnet,
    "regnet": _regnet,
    "convnext": _convnext,
    "swin": lambda: swin_transformer.SwinTransformer(
        [4, 4], 8, [2, 1], [1, 2], [4, 4], num_classes=CLASSES
    ),
    "vit": lambda: vision_transformer.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=CLASSES),
    "maxvit": lambda: maxvit.MaxVit(
        (32, 32), 8, 2, [8], [1], 4, stochastic_depth_prob=0.0, num_classes=CLASSES
    ),
}
