"""What layers of the float network give, and how far a quantized layer's outputs are from it."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qtool.graph.inputs import Inputs
from qtool.post_training.patches import groups_of
from qtool.post_training.walk import walk
from qtool.quantizers.control import in_float
from qtool.quantizers.layers import QuantLayer

FEWEST, MOST = 4096, 16384  # outputs of a layer, a vector of its channels each, that are looked at
NUMBERS = 2**23  # in them, or in what they are computed from: fewer outputs where there are more
AT_ONCE = 2**16  # rows that are in float64 at a time


@dataclass(frozen=True)
class FloatOutput:
    """Outputs of one layer in the float network.

    Attributes:
        mean: float64 [C], over images and positions.
        rows: float32 [P, C], some of them.
    """

    mean: Tensor
    rows: Tensor

    @classmethod
    def of(cls, layer: QuantLayer, y: Tensor) -> "FloatOutput":
        """Return what is kept of an output [B, C, ...], or [..., C] of a linear layer."""
        every = by_channel(layer, y)
        return cls(channel_means(every), every[places_of(layer, len(every))].clone())

    def error(self, rows: Tensor) -> float:
        """Return the squared difference of other outputs at the same places, [P, C].

        As a share: 1 is what the mean of each channel alone would have.
        """
        spread = (self.rows - self.mean.float()).double().square().sum()
        apart = (rows - self.rows).double().square().sum()
        return float(apart / spread.clamp_min(torch.finfo(torch.float64).tiny))


def channel_axis(layer: QuantLayer) -> int:
    """Return the axis of a layer's output that its channels lie along, counted from the end."""
    return -1 if isinstance(layer, nn.Linear) else -(layer.weight.ndim - 1)


def by_channel(layer: QuantLayer, y: Tensor) -> Tensor:
    """Return an output as rows, one for each image and position, [N, C]."""
    return y.movedim(channel_axis(layer), -1).reshape(-1, _channels(layer))


def channel_means(rows: Tensor) -> Tensor:
    """Return the mean of each channel of outputs [N, C], float64 [C]."""
    sums = [part.double().sum(0) for part in rows.split(AT_ONCE)]
    return torch.stack(sums).sum(0) / len(rows)


def _channels(layer: QuantLayer) -> int:
    return layer.layout.channels(layer.weight.shape)


def places(count: int, most: int = FEWEST) -> Tensor:
    """Return which of so many rows are looked at: the same ones for equal counts, int64 [P]."""
    if count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(count, (most,), generator=generator).sort().values


def places_of(layer: QuantLayer, count: int) -> Tensor:
    """Return which of so many outputs of a layer it is improved by, as `places` does."""
    rows = layer.layout.rows(layer.weight)
    inputs = groups_of(layer) * rows[0].numel()
    return places(count, min(max(NUMBERS // max(inputs, len(rows)), FEWEST), MOST))


@torch.no_grad()
def float_outputs(
    model: nn.Module, inputs: Inputs, layers: Iterable[str]
) -> dict[str, FloatOutput]:
    """Return what layers that are called once give in the float network, by their names."""
    found: dict[str, FloatOutput] = {}
    wanted = set(layers)

    def look(name: str, layer: QuantLayer, x: Tensor) -> None:
        if name in wanted:
            x, weight = layer.quantized_operands(x, layer.whole_weight)
            found[name] = FloatOutput.of(layer, layer.of_operands(x, weight))

    with in_float(model):
        walk(model, inputs, look)
    return found
