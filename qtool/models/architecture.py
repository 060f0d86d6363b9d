"""What makes a network again with other weights: plain data, which checkpoints and files hold."""

from typing import TypedDict


class OwnArchitecture(TypedDict):
    """Of one of qtool's own networks."""

    classes: int
    image_size: int
    channels: int
    params: dict[str, object]  # those of the recipe


class TorchvisionArchitecture(TypedDict):
    """Of one of torchvision's networks."""

    classes: int
    image_size: int
    small_stem: bool  # 3x3, no stride, no pooling
    published_input: bool  # takes inputs scaled as its published weights expect


Architecture = OwnArchitecture | TorchvisionArchitecture
