"""The residual networks of He et al. for small images.

Reference: He et al., 2016, arXiv:1512.03385, section 4.2.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.models.activation_functions import relu

Shortcut = Literal["average_pool", "subsample"]
Activate = Callable[[int], nn.Module]  # by channels
WIDTHS = (16, 32, 64)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights; the activation comes after the sum."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        shortcut: Shortcut,
        *,
        affine: bool,
        activate: Activate = relu,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs, affine=affine)
        self.relu1 = activate(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, affine=affine)
        self.relu2 = activate(outputs)
        self.stride, self.more, self.averages = stride, outputs - inputs, shortcut == "average_pool"

    def shortcut(self, x: Tensor) -> Tensor:
        """Return x, at half the size with channels of zeros added where the block needs that."""
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride) if self.averages else x[:, :, ::2, ::2]
        if not self.more:
            return x
        return F.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [B, outputs, H / stride, W / stride]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """Three stages of basic blocks, 16, 32 and 64 channels wide.

    `affine` gives batch norms a scale and a shift, `activate` makes what stands for ReLU.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        blocks: int,
        shortcut: Shortcut,
        *,
        affine: bool,
        activate: Activate = relu,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0], affine=affine)
        self.relu = activate(WIDTHS[0])
        inputs = WIDTHS[0]
        for stage, width in enumerate(WIDTHS, start=1):
            strides = [1 if stage == 1 else 2] + [1] * (blocks - 1)
            members = []
            for stride in strides:
                members.append(
                    BasicBlock(inputs, width, stride, shortcut, affine=affine, activate=activate)
                )
                inputs = width
            self.add_module(f"layer{stage}", nn.Sequential(*members))
        self.linear = nn.Linear(WIDTHS[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, classes] of images [B, channels, H, W]."""
        x = self.relu(self.bn1(self.conv1(x)))
        for stage in (self.get_submodule(f"layer{k}") for k in (1, 2, 3)):
            x = stage(x)
        return self.linear(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
