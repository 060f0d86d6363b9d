"""What each layer's width costs the network: its loss, and the error of its output.

A layer's weight is rounded to a width, by `rounded` or to nearest, and the network runs once more
from that layer on: alone, with everything else in float, and with the rest quantized as the recipe
has it. The error of the output y against that of the float network, y*, is

    sum |y - y*|^2 / sum |y* - mean over images of y*|^2

so that 1 says nothing of the float network's answers is left. Layers with one parameter for a
weight are one group: they have one width.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from qtool.bits.rounded import fitted, may_be_kept
from qtool.console import STATUS
from qtool.evaluation import are_numbers, count_hits
from qtool.graph.replayed import Replay
from qtool.post_training.outputs import channel_axis
from qtool.quantizers.control import in_float
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layer import QuantLayer
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.weights import WeightQuantizer
from qtool.reports.words import time_left
from qtool.settings.tensors import WeightQuantization

Mode = Literal["alone", "rest"]
MODES: tuple[Mode, ...] = ("alone", "rest")
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Measured:
    """How a network does whose outputs are not those of the float one.

    Attributes:
        loss: mean over images, as the recipe has it.
        error: of the output, relative to the float network's.
        accuracy: share of images that are told right; None where labels are no classes.
    """

    loss: float
    error: float
    accuracy: float | None = None


@dataclass(frozen=True)
class Sensitivities:
    """What was measured.

    Attributes:
        groups: names of layers that have one width, in the order of the network.
        alone, rest: group and width -> what the network does, all else in float or quantized.
    """

    groups: tuple[tuple[str, ...], ...]
    alone: Mapping[tuple[int, int], Measured]
    rest: Mapping[tuple[int, int], Measured]


@dataclass(frozen=True)
class Shown:
    """What networks are shown, and what the float one says of it.

    Attributes:
        batches: images [B, C, H, W] and labels [B].
        expected: outputs of the float network for each batch.
        loss: of logits and labels.
    """

    batches: Sequence[tuple[Tensor, Tensor]]
    expected: Sequence[Tensor]
    loss: Loss

    @classmethod
    @torch.no_grad()
    def of(
        cls, network: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], loss: Loss
    ) -> "Shown":
        """Return what the float network, in evaluation mode, says of batches."""
        return cls(batches, [_logits(network(images)).float() for images, _ in batches], loss)

    @property
    def images(self) -> int:
        """Return how many images there are."""
        return sum(len(output) for output in self.expected)

    @cached_property
    def spread(self) -> float:
        """Return sum |y* - mean over images of y*|^2."""
        every = torch.cat(list(self.expected)).double()
        return float((every - every.mean(0)).square().sum())


class Rounded(nn.Module):
    """Stands where a weight's quantizer does, and gives the weight on the grid of another width."""

    def __init__(self, quantizer: WeightQuantizer | None, kept: Tensor | None) -> None:
        """Take a quantizer, or the weight as it is rounded already."""
        super().__init__()
        self.quantizer, self.kept = (quantizer,), kept  # in a tuple: it is not this module's own

    @classmethod
    def of(cls, layer: QuantLayer, settings: WeightQuantization, *, keeps: bool) -> "Rounded":
        """Return the weight of a layer at other settings, to nearest."""
        quantizer = fitted(layer, settings)
        return cls(quantizer, quantizer(layer.whole_weight) if keeps else None)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight, same shape."""
        if self.kept is not None:
            return self.kept
        assert self.quantizer[0] is not None
        return self.quantizer[0](weight)


class _Sums:
    """Collects losses and errors over batches."""

    def __init__(self) -> None:
        self.loss = self.error = 0.0
        self.hits = 0
        self.accurate = True

    def add(self, logits: Tensor, shown: Shown, batch: int) -> None:
        """Take in the outputs of a batch."""
        labels, expected, loss = shown.batches[batch][1], shown.expected[batch], shown.loss
        self.loss += float(loss(logits.float(), labels)) * len(labels)
        self.error += float((logits - expected).double().square().sum())
        self.hits += int(count_hits(logits, labels))
        self.accurate = not are_numbers(labels)

    def over(self, shown: Shown) -> Measured:
        """Return the means."""
        images, spread = shown.images, shown.spread
        right = self.hits / images if self.accurate else None
        return Measured(self.loss / images, self.error / max(spread, 1e-30), right)


def groups_of(model: nn.Module, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return layers by the parameter that is their weight, in the order of the names."""
    layers, found = quant_layers(model), dict[int, list[str]]()
    for name in names:
        found.setdefault(id(layers[name].weight), []).append(name)
    return tuple(map(tuple, found.values()))


@torch.no_grad()
def measure(
    model: nn.Module,
    shown: Shown,
    widths: Mapping[str, Mapping[int, WeightQuantization]],
    modes: Sequence[Mode] = MODES,
    made: Mapping[tuple[str, int], Tensor] = MappingProxyType({}),
) -> Sensitivities:
    """Measure what each width of each layer costs.

    Args:
        model: prepared and calibrated, in evaluation mode; it is left as it was.
        shown: what it is measured by.
        widths: layer -> width -> the settings of its weight at that width.
        modes: alone, rest, or both.
        made: layer and width -> its weight, rounded by `compensated_weights`; what is not there is
            rounded to nearest.
    """
    groups = groups_of(model, list(widths))
    layers = quant_layers(model)
    keeps = may_be_kept(layers, widths)
    rounded = {
        (number, name, bits): Rounded(None, made[name, bits])
        if (name, bits) in made
        else Rounded.of(layers[name], settings, keeps=keeps)
        for number, group in enumerate(groups)
        for name in group
        for bits, settings in widths[name].items()
    }
    pairs = [(number, bits) for number, group in enumerate(groups) for bits in widths[group[0]]]
    sums = {(mode, *pair): _Sums() for mode in modes for pair in pairs}
    replay = Replay(model, (FakeQuantize, Rounded))
    progress = _Progress(len(shown.batches) * len(modes) * len(pairs))
    exact: dict[tuple[Mode, int], bool] = {}  # by the first batch
    for batch, (images, _) in enumerate(shown.batches):
        for mode in modes:
            with in_float(model) if mode == "alone" else nullcontext():
                replay.record(images)
                for number, bits in pairs:
                    if (mode, number) not in exact:
                        exact[mode, number] = replay.is_exact(images, since=groups[number])
                    since = groups[number] if exact[mode, number] else ()
                    parts = {name: rounded[number, name, bits] for name in groups[number]}
                    with instead(layers, parts), keeping_means(layers, groups[number], replay):
                        logits = _logits(replay.run(images, since=since))
                    sums[mode, number, bits].add(logits, shown, batch)
                    progress.step()
    replay.forget()
    STATUS.clear()

    def found(mode: Mode) -> dict[tuple[int, int], Measured]:
        if mode not in modes:
            return {}
        return {pair: sums[mode, *pair].over(shown) for pair in pairs}

    return Sensitivities(groups, found("alone"), found("rest"))


@torch.no_grad()
def judge(model: Callable[[Tensor], object], shown: Shown) -> Measured:
    """Return how a model, in evaluation mode, does beside the float network."""
    sums = _Sums()
    for batch, (images, _) in enumerate(shown.batches):
        sums.add(_logits(model(images)), shown, batch)
    return sums.over(shown)


@contextmanager
def instead(
    layers: Mapping[str, QuantLayer], parts: Mapping[str, nn.Module | None]
) -> Iterator[None]:
    """Let other modules stand where the quantizers of weights do, while inside; None for float."""
    before = {name: layers[name]._modules.get("weight_quantizer") for name in parts}
    try:
        for name, part in parts.items():
            layers[name]._modules["weight_quantizer"] = part
        yield
    finally:
        for name, part in before.items():
            layers[name]._modules["weight_quantizer"] = part


@contextmanager
def keeping_means(
    layers: Mapping[str, QuantLayer], names: Sequence[str], replay: Replay
) -> Iterator[None]:
    """Let the mean of each channel of a layer's output stay as it was recorded, while inside.

    That is what bias correction sees to without training, and a batch norm in training.
    """

    def keep(name: str, layer: QuantLayer, args: object, output: Tensor) -> Tensor:
        del args
        before = replay.first_output(name)
        if not isinstance(before, Tensor) or before.shape != output.shape:
            return output
        axis = channel_axis(layer) % output.ndim
        others = [k for k in range(output.ndim) if k != axis]
        return output - (output - before).mean(others, keepdim=True)

    handles = [layers[name].register_forward_hook(partial(keep, name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _logits(output: object) -> Tensor:
    assert isinstance(output, Tensor)
    return output


class _Progress:
    """A line at the foot of a terminal: how much is done, and the time that is left."""

    def __init__(self, steps: int) -> None:
        self._steps, self._done, self._begun = steps, 0, time.monotonic()

    def step(self) -> None:
        """Count one more pass."""
        self._done += 1
        if STATUS.is_due():
            taken = time.monotonic() - self._begun
            left = time_left(taken / self._done * (self._steps - self._done))
            share = 100 * self._done / self._steps
            STATUS.show([f"sensitivity {share:3.0f} %", f"{left} left", f"{self._done} passes"])
