"""What a network of the zoo is: how it is built, what it is given, and what it gives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Given = Callable[[int], Inputs]
Form = Literal["logits", "values"]

CLASSES = 5
KINDS: dict[str, list["Network"]] = {}


@dataclass(frozen=True)
class Network:
    """One network of the zoo.

    Attributes:
        make: builds it, with torch's seed set before.
        given: number of rows -> a batch: a tensor, a tuple by position or a dict by keyword.
        form: whether what it returns are logits [N, classes], or other values.
        position: among the networks of its kind, from 0.
    """

    name: str
    kind: str
    make: Callable[[], nn.Module]
    given: Given
    form: Form
    position: int

    def build(self) -> nn.Module:
        """Return the float network, always the same one, whose norms have been used."""
        torch.manual_seed(self.position)
        model = self.make()
        use_norms(model)
        return model.train(self.position % 2 == 0)

    def inputs(self, rows: int, seed: int) -> Inputs:
        """Return a batch."""
        torch.manual_seed(1000 + seed)
        return self.given(rows)


def zoo(kind: str, given: Given, form: Form = "logits") -> Callable[..., Callable[[], nn.Module]]:
    """List what builds a network, a function or a class, under its own name."""

    def add(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        of_kind = KINDS.setdefault(kind, [])
        of_kind.append(Network(make.__name__, kind, make, given, form, len(of_kind)))
        return make

    return add


def use_norms(model: nn.Module) -> None:
    """Give every norm statistics and gains that differ from channel to channel, of either sign."""
    for module in model.modules():
        for name, value in [*module.named_buffers(recurse=False)]:
            if name == "running_mean" and isinstance(value, Tensor):
                value.normal_(std=0.3)
            elif name == "running_var" and isinstance(value, Tensor):
                value.uniform_(0.5, 1.5)
        if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), Tensor):
            with torch.no_grad():
                signs = torch.where(torch.rand_like(module.weight) < 0.2, -1.0, 1.0)
                module.weight.uniform_(0.5, 1.5).mul_(signs)
                if isinstance(getattr(module, "bias", None), Tensor):
                    module.bias.normal_(std=0.2)


class Net(nn.Module):
    """Parts that `flow` connects."""

    def __init__(self, flow: Callable[..., object], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.flow = flow

    def forward(self, x: Tensor) -> object:
        return self.flow(self, x)


def images(channels: int = 3, size: int = 8) -> Given:
    """Return what gives random images [rows, channels, size, size]."""
    return lambda rows: torch.randn(rows, channels, size, size)


def vectors(features: int = 6) -> Given:
    """Return what gives random vectors [rows, features]."""
    return lambda rows: torch.randn(rows, features)


def conv(given: int, made: int, kernel: int = 3, **more: object) -> nn.Conv2d:
    """Return a convolution that keeps the size where it has no stride."""
    return nn.Conv2d(given, made, kernel, **{"padding": kernel // 2, **more})


def head(features: int) -> nn.Linear:
    """Return the layer that gives logits."""
    return nn.Linear(features, CLASSES)


def pooled(x: Tensor) -> Tensor:
    """Return the mean over the image, [N, C]."""
    return x.mean((2, 3))


def block(given: int, made: int, **more: object) -> nn.Sequential:
    """Return convolution, batch norm and ReLU."""
    return nn.Sequential(conv(given, made, bias=False, **more), nn.BatchNorm2d(made), nn.ReLU())
