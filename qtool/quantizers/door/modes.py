"""What a float model does in evaluation mode, and in training mode, before anything is quantized.

What a model calls may depend on its mode, and what is trained has to be what is deployed: both are
looked at before a layer is quantized, so that nothing is found only after the training.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from torch import nn

from qtool.graph.bypassed import read_past_modules
from qtool.graph.copies import copy_of
from qtool.graph.inputs import Inputs
from qtool.graph.recorder import Watched, record_forward, without_traces
from qtool.graph.recording import Recording
from qtool.graph.sites.value_graph import ValueGraph
from qtool.graph.sites.value_tape import record_values
from qtool.graph.subclasses import look_at_subclasses
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.layers import QUANT_TYPES, note_plain, plain_type

ROWS = 4  # of the example: enough for batch norms in training mode


@dataclass(frozen=True)
class Seen:
    """What a pass in one of the modes told.

    Attributes:
        recording: of the layers that may be quantized, and of ReLUs.
        past: names of modules whose parameters or buffers were read while they did not run.
        values: what every function read and made, where that was asked for.
    """

    recording: Recording
    past: Collection[str]
    values: ValueGraph | None = None


def see_both_modes(model: nn.Module, inputs: Inputs, *, values: bool = False) -> list[Seen]:
    """Run copies of a float model on some rows, and tell what its modes do, evaluation first.

    A mode in which the model fails is left out; some fail in training mode without labels.

    Args:
        model: is not changed.
        inputs: of the passes.
        values: look at every function's, too.
    """
    for given in (inputs.first(ROWS), inputs):
        twin = copy_of(model)
        modes = (False, True)
        found = [seen for mode in modes if (seen := _see(twin.train(mode), given, values=values))]
        if found and not found[0].recording.training:
            return found
    return []


def set_missing_ranges(model: nn.Module, inputs: Inputs) -> None:
    """Set the ranges of inputs that evaluation alone makes, in a pass in evaluation mode.

    Args:
        model: fake-quantized, in training mode, in which a pass has set the other ranges.
        inputs: of the pass.
    """
    if all(q.ready for q in model.modules() if isinstance(q, ActivationQuantizer)):
        return
    training = [module for module in model.modules() if module.training]
    try:
        with without_traces(model.eval()):
            inputs.copied().call(model)
    finally:
        for module in training:
            module.training = True


def _see(model: nn.Module, inputs: Inputs, *, values: bool) -> Seen | None:
    """Return what a pass tells, None where it fails."""
    try:
        with without_traces(model):
            recording = record_forward(model, watched_in(model), inputs.copied())
            past = read_past_modules(model, inputs.copied())
            graph = record_values(model, inputs.copied()) if values else None
            return Seen(recording, past, graph)
    except Exception:  # whatever a model raises in a mode that it is not made for
        return None


def watched_in(model: nn.Module) -> Watched:
    """Return what is watched in a float model: layers that may be quantized, and torch's ReLUs."""
    kinds = {type(module) for module in model.modules() if plain_type(module)}
    return Watched(layers=tuple(kinds), relus=(nn.ReLU,), exactly=True)


def fed_constants(model: nn.Module, seen: list[Seen], inputs: Inputs) -> set[str]:
    """Return the layers that read what is made of parameters and buffers alone, in evaluation."""
    told = [one.recording for one in seen if not one.recording.training]
    found = told[0].may_read_constants if told else set()
    if not found:
        return set()
    graph = seen[0].values
    if graph is None:
        graph = record_values(copy_of(model).eval(), inputs.first(ROWS))
    read = {operation.site.leaf for operation in graph.operations}
    called = {leaf for ways in graph.counts.values() for way in ways for leaf, _ in way}
    return (found & called) - read


def computed_weights(model: nn.Module, inputs: Inputs | None) -> dict[str, str]:
    """Return the layers of a subclass that compute with another weight than their own.

    Those of them that are otherwise plain are noted to be so, and so are those that do just what
    the plain layer does in a forward of their own.

    Returns:
        Layer -> the function that it gives that weight to; none without inputs of a pass.
    """
    kinds = tuple(QUANT_TYPES)
    odd = [n for n, m in model.named_modules() if isinstance(m, kinds) and plain_type(m) is None]
    if inputs is None or not odd:
        return {}
    twin, given = copy_of(model), inputs.first(ROWS)

    def run(*, training: bool) -> object:
        with without_traces(twin.train(training)):
            return given.call(twin)

    passes = [partial(run, training=training) for training in (False, True)]
    found, plain = look_at_subclasses(twin, odd, passes)
    for name in plain:
        note_plain(model.get_submodule(name), computes=name in found)
    return found


def bypassed(seen: list[Seen]) -> set[str]:
    """Return the modules whose weights a model uses past them.

    Those are lost to quantization where that happens in evaluation mode, and where training does
    so and never calls the layer.
    """
    return {
        name
        for one in seen
        for name in one.past
        if not one.recording.training or not one.recording.calls[name]
    }
