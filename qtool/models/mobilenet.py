"""MobileNet v1.

Reference: Howard et al., 2017, arXiv:1704.04861, table 1.
"""

from collections import OrderedDict

from torch import nn

from qtool.models.building import initialize_convolutions, widened

FIRST = 32  # channels
BLOCKS = (  # channels and stride of each depthwise separable convolution
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *[(512, 1)] * 5,
    (1024, 2),
    (1024, 1),
)


def mobilenet(classes: int, channels: int, width: float) -> nn.Sequential:
    """Build the network; width multiplies all channels. Images may be of any size."""
    inputs = widened(FIRST, width)
    layers = OrderedDict(
        conv1=_with_norm_and_relu(nn.Conv2d(channels, inputs, 3, 2, 1, bias=False))
    )
    for index, (full, stride) in enumerate(BLOCKS, start=1):
        outputs = widened(full, width)
        depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        layers[f"depthwise{index}"] = _with_norm_and_relu(depthwise)
        layers[f"pointwise{index}"] = _with_norm_and_relu(pointwise)
        inputs = outputs
    head = OrderedDict(
        pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(inputs, classes)
    )
    model = nn.Sequential(OrderedDict([*layers.items(), *head.items()]))
    initialize_convolutions(model)
    return model


def _with_norm_and_relu(convolution: nn.Conv2d) -> nn.Sequential:
    norm = nn.BatchNorm2d(convolution.out_channels)
    return nn.Sequential(OrderedDict(conv=convolution, bn=norm, relu=nn.ReLU()))
