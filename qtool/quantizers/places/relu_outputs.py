"""Where the quantizers of activations stand: at the layers that read them, or at ReLUs.

A quantizer at the output of a ReLU serves every layer that reads it, also pooled or reshaped. Which
layers those are is seen in one forward pass of the float model.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from qtool.graph.calls import count_calls
from qtool.graph.copies import copy_of
from qtool.graph.inputs import Inputs, device_of, tensors_in
from qtool.graph.module_sites import Site
from qtool.graph.recorder import record_forward, without_traces
from qtool.graph.recording import Recording
from qtool.graph.swap import replace_module
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.door.modes import Seen, watched_in
from qtool.quantizers.layers import plain_type
from qtool.quantizers.relu import QuantReLU
from qtool.settings.quantization import Quantization

KEEPS_THE_GRID = ("max_pool2d", "flatten", "view", "reshape", "contiguous", "dropout")


def quantize_relus(
    model: nn.Module, settings: Quantization, example: Inputs | None, seen: Sequence[Seen]
) -> dict[str, ActivationQuantizer]:
    """Put quantizers at the outputs of ReLUs where that is asked for; return layer -> quantizer.

    Args:
        model: float; its ReLUs are swapped in place.
        settings: which layers want it.
        example: one batch of inputs, on the model's device.
        seen: what the model does with it in both modes.

    Raises:
        ValueError: If it is asked for without an example.
    """
    found = [name for name, module in model.named_modules() if plain_type(module)]
    layers = {name: settings.for_layer(name)[1] for name in found}
    names = {name for name, inputs in layers.items() if inputs and inputs.place == "relu_outputs"}
    if not names:
        return {}
    if example is None:
        raise ValueError("place: relu_outputs needs an example, to see which layers read a ReLU")
    places, calls = places_in([one.recording for one in seen], set(layers))
    in_place = {site.module for site in places.values() if _is_in_place(model, site.module)}
    needed = needed_in_place(model, in_place, example)
    places = {name: site for name, site in places.items() if site.module not in needed}
    sources: dict[str, ActivationQuantizer] = {}
    quantizers: dict[str, list[ActivationQuantizer | None]] = {}
    for site, readers in shared_places(settings, places):
        inputs = layers[readers[0]]
        assert inputs is not None
        quantizer = ActivationQuantizer(inputs).to(device_of(model))
        of_calls = quantizers.setdefault(site.module, [None] * calls[site.module])
        of_calls[site.call] = quantizer
        sources |= dict.fromkeys(readers, quantizer)
    for name, of_calls in quantizers.items():
        replace_module(model, name, QuantReLU(of_calls).train(model.training))
    count_calls(model)
    return sources


@torch.no_grad()
def find_places(
    model: nn.Module, layers: set[str], example: Inputs
) -> tuple[dict[str, Site], dict[str, int]]:
    """Run a float model once, and see which layers take the output of a ReLU module.

    Args:
        model: float; its modules of the exact type nn.ReLU count.
        layers: names of the layers to look at.
        example: one batch of inputs.

    Returns:
        Layer -> the ReLU and its call, for layers that are called once; ReLU -> its calls.
    """
    return places_in([record_forward(model, watched_in(model), example)], layers)


def places_in(
    recordings: Sequence[Recording], layers: set[str]
) -> tuple[dict[str, Site], dict[str, int]]:
    """Return the places that layers have in every pass that calls them, and each ReLU's calls."""
    found: dict[str, Site] = {}
    for name in sorted(layers):
        passes = [told for told in recordings if told.calls[name]]
        sites = {told.places(KEEPS_THE_GRID).get(name) for told in passes}
        site = sites.pop() if len(sites) == 1 else None
        if site is not None:
            found[name] = site
    calls: Counter[str] = Counter()
    for told in recordings:
        calls |= told.calls_of("relu")  # the larger of both
    return found, dict(calls)


def _is_in_place(model: nn.Module, name: str) -> bool:
    relu = model.get_submodule(name)
    return isinstance(relu, nn.ReLU) and relu.inplace


@torch.no_grad()
def needed_in_place(model: nn.Module, relus: Collection[str], example: Inputs) -> set[str]:
    """Return those ReLUs in place whose input is read again, by other names, once it is rectified.

    A quantized ReLU leaves its input alone, which would change what such a model computes.
    """
    twin = copy_of(model).eval()

    def output() -> list[Tensor]:
        with without_traces(twin):
            torch.manual_seed(0)  # of the copy's random numbers, which are put back
            return list(tensors_in(example.copied().call(twin)))

    def changes(names: Collection[str]) -> bool:
        relus = [m for n, m in twin.named_modules() if n in names and isinstance(m, nn.ReLU)]
        for relu in relus:
            relu.inplace = False
        given = output()
        for relu in relus:
            relu.inplace = True
        return any(not torch.equal(a, b) for a, b in zip(expected, given, strict=True))

    if not relus:
        return set()
    expected = output()
    return {name for name in relus if changes([name])} if changes(relus) else set()


def shared_places(
    settings: Quantization, places: dict[str, Site]
) -> Iterator[tuple[Site, list[str]]]:
    """Yield each ReLU call that gets a quantizer, with the layers that read its output.

    Layers that want different inputs keep a quantizer of their own instead.
    """
    readers: dict[Site, list[str]] = {}
    for name, place in places.items():
        readers.setdefault(place, []).append(name)
    for place, names in readers.items():
        wanted = [settings.for_layer(name)[1] for name in names]
        first = wanted[0]
        if first is not None and first.place == "relu_outputs" and all(w == first for w in wanted):
            yield place, names
