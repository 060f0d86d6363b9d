"""Several inputs, by position or by keyword, and outputs in many forms."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.zoo.network import Net, block, conv, head, images, pooled, zoo


def image(rows: int, channels: int = 3) -> Tensor:
    """Return random images."""
    return torch.randn(rows, channels, 8, 8)


@zoo("inputs", lambda rows: (image(rows), image(rows)))
class LeftAndRight(nn.Module):
    """Two images by position."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.both, self.head = conv(3, 4), conv(3, 4), block(8, 6), head(6)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        x = torch.cat([self.one(left).relu(), self.other(right).relu()], 1)
        return self.head(pooled(self.both(x)))


@zoo("inputs", lambda rows: {"x": image(rows), "extra": torch.randn(rows, 4)})
class ImageAndNumbers(nn.Module):
    """An image and a vector by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.numbers, self.head = block(3, 6), nn.Linear(4, 6), head(12)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        return self.head(torch.cat([pooled(self.body(x)), self.numbers(extra).relu()], 1))


@zoo("inputs", lambda rows: {"weight": torch.rand(rows, 1), "pixels": image(rows)})
class KeywordsOnly(nn.Module):
    """Arguments that have to be named, given in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(block(3, 6), conv(6, 6)), head(6)

    def forward(self, *, pixels: Tensor, weight: Tensor) -> Tensor:
        return self.head(pooled(self.body(pixels).relu()) * weight)


@zoo("inputs", images())
class OptionalSecond(nn.Module):
    """A second argument that is not given."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.prior, self.head = block(3, 6), nn.Linear(4, 6), head(6)

    def forward(self, x: Tensor, prior: Tensor | None = None) -> Tensor:
        x = pooled(self.body(x))
        return self.head(x if prior is None else x + self.prior(prior))


@zoo("inputs", images(), "values")
def tuple_of_outputs():
    def flow(net, x):
        features = net.body(x)
        return net.head(pooled(features)), features

    return Net(flow, body=nn.Sequential(block(3, 6), conv(6, 6)), head=head(6))


@zoo("inputs", images())
def dict_of_outputs():
    def flow(net, x):
        x = net.body(x)
        return {"logits": net.head(pooled(x)), "other": net.second(pooled(x))}

    return Net(flow, body=nn.Sequential(block(3, 6), block(6, 6)), head=head(6), second=head(6))


@dataclass
class Answer:
    """What a network says."""

    logits: Tensor
    features: Tensor | None = None


@zoo("inputs", images())
def dataclass_of_outputs():
    def flow(net, x):
        return Answer(logits=net.head(pooled(net.body(x))))

    return Net(flow, body=nn.Sequential(block(3, 6), block(6, 6)), head=head(6))


@zoo("inputs", lambda rows: (image(rows), torch.randint(10, (rows, 3))))
class ImageAndTokens(nn.Module):
    """An image, and integers that an embedding looks up."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.words, self.head = block(3, 6), nn.Embedding(10, 6), head(6)
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        words = self.mix(self.words(tokens).mean(1)).relu()
        return self.head(pooled(self.body(x)) + words)


class Levels(NamedTuple):
    """Two maps of features."""

    fine: Tensor
    coarse: Tensor


@zoo("inputs", images(), "values")
def named_tuple_of_maps():
    def flow(net, x):
        fine = net.fine(x)
        return Levels(net.out1(fine), net.out2(net.coarse(fine)))

    return Net(
        flow,
        fine=block(3, 6),
        coarse=block(6, 6, stride=2),
        out1=conv(6, 4, 1),
        out2=conv(6, 4, 1),
    )


@zoo("inputs", lambda rows: (image(rows), torch.rand(rows, 1, 8, 8) < 0.7))
class ImageAndMask(nn.Module):
    """An image, and what of it counts, as booleans."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(block(3, 6), block(6, 6)), head(6)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.body(x.masked_fill(~mask, 0.0)) * mask
        return self.head(x.sum((2, 3)) / mask.sum((2, 3)).clamp_min(1))
