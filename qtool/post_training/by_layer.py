"""Rounding that is chosen layer by layer, each by what the quantized layers before it make.

After each layer its bias is corrected: what is left of the mean error goes into the bias, or the
norm behind the layer.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from qtool.graph.copies import copy_of
from qtool.graph.recording import Recording
from qtool.numerics.on_grid import OnGrid
from qtool.post_training.adaround import Learning, learned_codes
from qtool.post_training.begin import choose_activations
from qtool.post_training.bias_correction import shift_output
from qtool.post_training.following import Following, following
from qtool.post_training.gptq import DAMPING, compensated_codes, hessian
from qtool.post_training.held_codes import codes_of, hold_codes, quantizer_of, rows_of
from qtool.post_training.kept import Keeper, Unit, changes, identity_of, state_of
from qtool.post_training.methods import METHODS, Calibrated, Positive
from qtool.post_training.progress import Progress, shown
from qtool.post_training.seen import Patches, float_twin, order_of_calls, patches_seen
from qtool.post_training.weight_scales import best_scales, may_choose
from qtool.quantizers.door.deployed import prepared_state, see_deployed
from qtool.quantizers.layers import QuantLayer
from qtool.reports.improvements import Applied

SINGULAR = "what it reads says nothing of its weights, or is constant: rounded to nearest"
NO_BETTER = "learning made it no better: rounded to nearest"


@dataclass(frozen=True)
class Network:
    """A calibrated network whose rounding is chosen part by part.

    Attributes:
        given: its model is changed in place.
        twin: the float network.
        calls: layer -> how often a pass calls it, in the order of the pass; those whose weight is
            quantized.
        recording: of a pass in evaluation mode.
        scaled: layers whose scales were chosen.
    """

    given: Calibrated
    twin: nn.Module
    calls: dict[str, int]
    recording: Recording
    scaled: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, given: Calibrated) -> "Network":
        """Return what is known of a calibrated model."""
        model = given.model
        calls = order_of_calls(model, given.batches[0])
        for name in list(calls):
            layer = cast(QuantLayer, model.get_submodule(name))
            if layer.weight_quantizer is None:
                del calls[name]
        recording = see_deployed(copy_of(model), given.batches[0]).recording
        return cls(given, float_twin(model), calls, recording)

    def layer(self, name: str) -> QuantLayer:
        """Return a layer of the model."""
        return cast(QuantLayer, self.given.model.get_submodule(name))

    def generator(self, name: str) -> torch.Generator:
        """Return a generator for a part, which nothing else that is drawn moves."""
        number = sum(ord(letter) * 31**place for place, letter in enumerate(name))
        return torch.Generator().manual_seed((self.given.seed * 1_000_003 + number) % 2**63)

    def part(self, name: str, each: Callable[[float], None]) -> "Part":
        """Return a layer whose codes are to be chosen, as it is seen now.

        Its weight gets the scales of the smallest output error first, where they are open.
        """
        model, layer, generator = self.given.model, self.layer(name), self.generator(name)
        seen = patches_seen(
            model,
            self.twin,
            name,
            self.given.batches,
            calls=self.calls[name],
            generator=generator,
        )
        graph = prepared_state(model).graph
        follows = following(self.twin, name, len(seen.bias), self.recording, graph)
        quantizer, rows = quantizer_of(layer), rows_of(layer)

        def part(moments: Tensor | None, scaled: Applied | None) -> Part:
            on_grid, nearest = quantizer.on_grid, codes_of(layer)
            return Part(rows, on_grid, nearest, seen, follows, generator, each, moments, scaled)

        if not may_choose(quantizer) or name in self.scaled:
            return part(None, None)
        before, moments = part(None, None), hessian(seen.inputs)
        quantizer.scale.copy_(best_scales(quantizer, rows.flatten(1), moments.float()))
        self.scaled.add(name)
        after = part(moments, None)
        scaled = Applied(
            layer=name,
            step="weight_scales",
            error_before=before.error(before.nearest),
            error_after=after.error(after.nearest),
        )
        return part(moments, scaled)

    def keeper(self, said: str) -> Keeper:
        """Return what keeps the parts that are done; those of before are put into the model."""
        identity = identity_of(self.given.model, list(self.given.batches), said)
        keeper = Keeper.begun(self.given.keep, identity)
        for unit in keeper.units.values():
            unit.put_into(self.given.model)
        return keeper


@dataclass(frozen=True)
class Part:
    """One layer whose codes are to be chosen.

    Attributes:
        rows: of its weight, float32 [C, in / groups, ...].
        nearest: their codes as rounding to nearest has them.
        seen: what it reads, and should make.
        follows: what comes of that.
        generator: for whatever is drawn.
        each: is told of the share that is done.
        moments: mean x x' of what it reads, float64 [groups, K, K], where that is known.
        scaled: what choosing its scales has brought.
    """

    rows: Tensor
    on_grid: OnGrid
    nearest: Tensor
    seen: Patches
    follows: Following
    generator: torch.Generator
    each: Callable[[float], None]
    moments: Tensor | None = None
    scaled: Applied | None = None

    def error(self, codes: Tensor, by: Tensor | float = 0.0) -> float:
        """Return how far the layer is from the float network with these codes, shifted `by` [C]."""
        made = self.seen.made_by(self.on_grid.values(codes)) + by
        return self.seen.error(made, self.follows)


Choose = Callable[[Part], tuple[Tensor, str]]
"""Returns the codes of a layer, and what is to be said."""


def layer_by_layer(given: Calibrated, method: str, said: str, choose: Choose) -> list[Applied]:
    """Choose the codes of each layer in turn, in place; return what was done.

    Args:
        given: the network.
        method: its name.
        said: its parameters, by which work that was begun is known again.
        choose: the codes of one layer.
    """
    ranges = choose_activations(given)
    network = Network.of(given)

    def learn(name: str, progress: Progress) -> Unit:
        part = network.part(name, partial(progress.within, name=name))
        return choose_layer(network, name, part, choose)

    names = list(network.calls)
    return ranges + part_by_part(network, names, learn, method=method, said=said, what="layer")


def part_by_part(
    network: Network,
    names: Sequence[str],
    learn: Callable[[str, Progress], Unit],
    *,
    method: str,
    said: str,
    what: str,
) -> list[Applied]:
    """Let each part of a network be learned that was not before, and keep what came of it.

    Args:
        network: changed in place.
        names: of the parts, in order.
        learn: changes one part in place, and returns what it did.
        method: its name.
        said: its parameters, by which work that was begun is known again.
        what: a part is, for people.
    """
    model = network.given.model
    keeper = network.keeper(f"{method} {said} seed {network.given.seed}")
    with shown(method, len(names), len(keeper.units), what) as progress:
        for name in names:
            if name in keeper.units:
                continue
            begun, before = time.monotonic(), state_of(model)
            progress.within(0, name)
            unit = learn(name, progress)
            unit.changed = changes(before, model)
            keeper.add(name, unit)
            progress.done(unit.applied, time.monotonic() - begun)
    keeper.done()
    return [row for unit in keeper.units.values() for row in unit.applied]


def choose_layer(network: Network, name: str, part: Part, choose: Choose) -> Unit:
    """Choose the codes of one layer, and correct its bias."""
    codes, note = choose(part)
    before = part.error(part.nearest)
    if part.error(codes) > before:
        codes, note = part.nearest, NO_BETTER
    layer = network.layer(name)
    hold_codes(layer, codes)
    after, by = part.error(codes), part.seen.shift(part.on_grid.values(codes))
    if (shifted := part.error(codes, by.float())) < after:  # a ReLU may cut off what was too much
        shift_output(network.given.model, name, layer, by)
        after = shifted
    row = Applied(layer=name, step="rounding", error_before=before, error_after=after, note=note)
    rows = [row] if part.scaled is None else [part.scaled, row]
    return Unit(codes={name: codes.to(torch.int8)}, applied=rows)


@METHODS.add
@torch.no_grad()
def gptq(given: Calibrated, *, damping: Annotated[float, Field(gt=0)] = DAMPING) -> list[Applied]:
    """Round each weight's columns one after another, the error of each made up for by the rest.

    Args:
        given: the network.
        damping: added to the diagonal of the Hessian, as a share of its mean.
    """

    def choose(part: Part) -> tuple[Tensor, str]:
        found = hessian(part.seen.inputs) if part.moments is None else part.moments
        codes = compensated_codes(part.rows, part.on_grid, found, damping=damping)
        return (part.nearest, SINGULAR) if codes is None else (codes, "")

    return layer_by_layer(given, "gptq", f"damping {damping}", choose)


@METHODS.add
@torch.no_grad()
def adaround(
    given: Calibrated,
    *,
    iterations: Positive = Learning.iterations,
    places: Positive = Learning.places,
) -> list[Applied]:
    """Learn the rounding of each layer, so that what follows it changes least.

    Args:
        given: the network.
        iterations: for each layer.
        places: of the calibration images in each iteration.
    """
    how = Learning(iterations=iterations, places=places)
    return layer_by_layer(given, "adaround", str(how), partial(by_adaround, how=how))


def by_adaround(part: Part, how: Learning) -> tuple[Tensor, str]:
    """Return codes that are learned, and nothing to be said."""
    codes = learned_codes(
        part.rows,
        part.on_grid,
        part.seen,
        part.follows,
        how=how,
        generator=part.generator,
        each=part.each,
    )
    return codes, ""
