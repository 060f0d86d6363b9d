"""Layers whose weights a model uses past them: attention, and F.linear given a layer's weight.

The model is changed so that it calls them, and norms that are a part of a module, before anything
is quantized. What stays past its layers then is left float.
"""

from collections.abc import Callable, Collection, Iterator, Mapping

from torch import nn

from qtool.graph.attention import APART, PACKED, attentions, given_apart, make_layered
from qtool.graph.by_function import call_layers, find_used_by_function, layers_called_so
from qtool.graph.copies import copy_of
from qtool.graph.inputs import Inputs
from qtool.graph.own_norm import find_own_norms, give_own_norms
from qtool.graph.recorder import without_traces
from qtool.limits import FLOAT_IN_STATE
from qtool.quantizers.computed import ComputesWeight
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.door.modes import ROWS
from qtool.quantizers.layers import (
    has_own_forward,
    plain_type,
    quant_layers,
    release_quant_layer,
)


def layer_attentions(model: nn.Module, inputs: Inputs | None) -> bool:
    """Make layers of the projections of nn.MultiheadAttention, in place; tell whether there are.

    Query, key and value are projected by one layer, unless the inputs show that they are several
    tensors, or the weight is shared with others that may show it.

    Args:
        model: float, changed in place.
        inputs: of a pass; without them it is taken that each attention is of one tensor.
    """
    found = attentions(model)
    apart: set[str] = set()
    if found and inputs is not None:
        twin = copy_of(model)
        apart = given_apart(twin, found, _passes(twin, inputs))
    if apart:
        held = [id(p) for m in model.modules() for p in m.parameters(recurse=False)]
        for name in list(apart):
            if any(held.count(id(p)) > 1 for p in found[name].parameters(recurse=False)):
                apart.remove(name)  # thirds of a parameter would no longer be shared
    make_layered(model, [name for name in found if name not in apart], sorted(apart))
    return bool(found)


def call_bypassed(model: nn.Module, past: Collection[str], inputs: Inputs) -> bool:
    """Let blocks call linear layers whose weights they give to F.linear, in place.

    Args:
        model: float, changed in place.
        past: modules whose weights it uses past them.
        inputs: of a pass.

    Returns:
        Whether there are such.
    """
    linears = [name for name in past if plain_type(model.get_submodule(name)) is nn.Linear]
    if not linears:
        return False
    twin = copy_of(model)
    blocks = find_used_by_function(twin, linears, _passes(twin, inputs))
    call_layers(model, blocks)
    return bool(blocks)


def call_own_norms(model: nn.Module, inputs: Inputs) -> None:
    """Let batch norms that do more call norms of their own, in place.

    Args:
        model: float, changed in place.
        inputs: of a pass.
    """
    twin = copy_of(model)
    give_own_norms(model, find_own_norms(twin, _passes(twin, inputs)))


def release_what_was_float(
    model: nn.Module, state_dict: Mapping[str, object], prefix: str, *args: object
) -> None:
    """Make layers float again that an older prepared state has float; a hook before it is loaded.

    That is a state with quantizers, in which attentions have the names of torch.nn, or layers that
    are used by function, or are of kinds that once were left float, have no quantizers. A state of
    a float model has none at all.
    """
    holders = {key.rpartition("_quantizer.")[0] for key in state_dict}
    holders = {key.removeprefix(prefix).rpartition(".")[0] for key in holders if key}
    if not holders:
        return
    own = (f"{key}_weight" for key in (*PACKED, *APART))
    old = {key for key in own for name in state_dict if name.endswith(f".{key}")}
    called = layers_called_so(model)
    for name, layer in quant_layers(model).items():
        own = layer.weight_quantizer is not None or layer.input_quantizer is not None
        seen = isinstance(layer, ComputesWeight) or has_own_forward(layer)
        once_float = own and (seen or not isinstance(layer, nn.Conv2d | nn.Linear))
        if name not in holders and (old or once_float or layer in called):
            release_quant_layer(layer)
            prepared_state(model).left_float[name] = FLOAT_IN_STATE.text()


def _passes(twin: nn.Module, inputs: Inputs) -> Iterator[Callable[[], object]]:
    """Yield passes in evaluation mode and in training mode."""

    def run() -> object:
        with without_traces(twin):
            return inputs.first(ROWS).call(twin)

    for mode in (False, True):
        twin.train(mode)
        yield run
