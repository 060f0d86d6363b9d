"""The deep residual network whose batch norms and ReLUs stand before the convolutions.

Reference: He et al., 2016, arXiv:1603.05027, figure 4e.
"""

import torch
from torch import Tensor, nn

from qtool.models.building import initialize_convolutions

BLOCKS = (3, 4, 6, 3)  # of 50 layers
EXPANSION = 4  # channels that leave a block, over those of its 3x3 convolution


class PreActivationBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each after a batch norm and a ReLU, and a shortcut.

    Where sizes change, the shortcut is a 1x1 convolution of the activated input.
    """

    downsample: nn.Conv2d | None

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.bn1, self.relu1 = nn.BatchNorm2d(inputs), nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn3, self.relu3 = nn.BatchNorm2d(width), nn.ReLU()
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        changes = stride > 1 or inputs != outputs
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [B, outputs, H / stride, W / stride]."""
        active = self.relu1(self.bn1(x))
        y = self.conv1(active)
        y = self.conv2(self.relu2(self.bn2(y)))
        y = self.conv3(self.relu3(self.bn3(y)))
        return y + (x if self.downsample is None else self.downsample(active))


class PreActivationResNet(nn.Module):
    """Four stages of blocks behind a 7x7 convolution, as in torchvision's `ResNet`."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for stage, count in enumerate(BLOCKS, start=1):
            width = 32 * 2**stage
            members = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                members.append(PreActivationBlock(inputs, width, stride))
                inputs = width * EXPANSION
            self.add_module(f"layer{stage}", nn.Sequential(*members))
        self.bn, self.relu = nn.BatchNorm2d(inputs), nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)
        initialize_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of images [B, channels, H, W]."""
        x = self.maxpool(self.conv1(x))
        for stage in range(1, len(BLOCKS) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        return self.fc(torch.flatten(self.avgpool(self.relu(self.bn(x))), 1))
