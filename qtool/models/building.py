"""What several networks are built with."""

from torch import nn


def initialize_convolutions(model: nn.Module) -> None:
    """Draw the weights of convolutions anew: normal, for a gain of 2 over what leaves a layer.

    Reference: He et al., 2015, arXiv:1502.01852, equation 14.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def widened(channels: int, width: float) -> int:
    """Return a multiple of a number of channels, at least 1."""
    return max(1, round(channels * width))
