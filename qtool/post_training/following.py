"""What follows a layer at once: a norm that is affine, and a ReLU or clip.

What a layer's rounding is to keep is not its own output but what comes of it: errors that a ReLU
cuts off cost nothing, and a norm says how much those of each channel cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qtool.graph.affine import affine_of
from qtool.graph.recording import FunctionCall, ModuleCall, Recording
from qtool.graph.sites.functions import LAYERS
from qtool.graph.sites.value_graph import ValueGraph

NORMS = ("batch_norm",)
RELUS = ("relu", "relu_")


@dataclass(frozen=True)
class Following:
    """clip(gain y + shift, low, high), of each channel.

    Attributes:
        gain, shift: float32 [C].
        low, high: ends of the clip; infinite where there is none.
    """

    gain: Tensor
    shift: Tensor
    low: float = -torch.inf
    high: float = torch.inf

    def __call__(self, y: Tensor) -> Tensor:
        """Return what follows outputs [P, C], same shape."""
        made = torch.addcmul(self.shift, y, self.gain)
        if self.low == -torch.inf and self.high == torch.inf:
            return made
        return made.clamp(self.low, self.high)

    def gradient(self, grad: Tensor, made: Tensor) -> Tensor:
        """Return the gradient with respect to outputs, [P, C].

        Args:
            grad: with respect to what follows.
            made: what follows, of those outputs.
        """
        if self.low == -torch.inf and self.high == torch.inf:
            return grad * self.gain
        return torch.where((made > self.low) & (made < self.high), grad * self.gain, 0.0)


def following(
    model: nn.Module, name: str, channels: int, recording: Recording, graph: ValueGraph
) -> Following:
    """Return what follows a layer of a prepared model.

    Args:
        model: in evaluation.
        name: of the layer.
        channels: of its output.
        recording: of a pass in evaluation mode.
        graph: of the model's values; empty where quantizers stand at layers or ReLUs.
    """
    weight = next(model.parameters())
    gain, shift = weight.new_ones(channels).float(), weight.new_zeros(channels).float()
    norms = [norm for norm in recording.norms if norm.layer == name and not norm.reason]
    if norms:
        norm = norms[0]
        affine = affine_of(model.get_submodule(norm.name), norm.shape, norm.axis)
        if affine is not None:
            gain, shift = affine.gain.float(), affine.shift.float()
    norm_name = norms[0].name if norms else ""
    low, high = _clip_in(graph, name) or _relu_in(recording, name, norm_name)
    return Following(gain, shift, low, high)


def _clip_in(graph: ValueGraph, name: str) -> tuple[float, float] | None:
    """Return the ends of the clip behind a layer in the graph of values; None without a graph."""
    if not graph.operations:
        return None
    for operation in graph.operations:
        if operation.site.leaf == name and operation.function in LAYERS:
            break
    else:
        return None
    while len(operation.makes) == 1:
        readers = graph.readers.get(operation.makes[0], [])
        if len(readers) != 1 or operation.makes[0] in graph.outputs:
            break
        operation = readers[0]
        if operation.function == "relu":
            return 0.0, torch.inf
        if operation.function == "clip" and "low" in operation.facts:
            low, high = operation.facts["low"], operation.facts["high"]
            ends = [x for x in (low, high) if isinstance(x, int | float)]
            return (float(ends[0]), float(ends[1])) if len(ends) == 2 else None
        if operation.function not in NORMS:
            break
    return -torch.inf, torch.inf


def _relu_in(recording: Recording, name: str, norm: str) -> tuple[float, float]:
    """Return the ends of the ReLU behind a layer in a recording; infinite where there is none."""
    made = [v for call in _calls_of(recording, name) for v in call.made]
    if norm:
        made = [v for call in _calls_of(recording, norm) for v in call.made]
    for value in made:
        readers = recording.readers.get(value, [])
        if len(readers) != 1:
            return -torch.inf, torch.inf
        (reader,) = readers
        relu = isinstance(reader, FunctionCall) and reader.name in RELUS
        if not relu and not (isinstance(reader, ModuleCall) and reader.role == "relu"):
            return -torch.inf, torch.inf
    return (0.0, torch.inf) if made else (-torch.inf, torch.inf)


def _calls_of(recording: Recording, name: str) -> Iterator[ModuleCall]:
    return (call for call in recording.module_calls if call.site.module == name)
