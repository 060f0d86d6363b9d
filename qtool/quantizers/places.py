"""Where the quantizers of activations stand: at the layers that read them, or at ReLUs.

A quantizer at the output of a ReLU serves every layer that reads it, also pooled or reshaped. Which
layers those are is seen in one forward pass of the float model.
"""

from collections.abc import Iterator

import torch
from torch import nn

from qtool.graph.calls import restart_calls
from qtool.graph.inputs import Inputs, device_of
from qtool.graph.recorder import Watched, record_forward, without_traces
from qtool.graph.sites import Site
from qtool.graph.swap import replace_module
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.layers import QUANT_TYPES
from qtool.quantizers.relu import QuantReLU
from qtool.settings.quantization import Quantization

KEEPS_THE_GRID = ("max_pool2d", "flatten", "view", "reshape", "contiguous", "dropout")
WATCHED = Watched(layers=tuple(QUANT_TYPES), relus=(nn.ReLU,), exactly=True)


def quantize_relus(
    model: nn.Module, settings: Quantization, example: Inputs | None
) -> dict[str, ActivationQuantizer]:
    """Put quantizers at the outputs of ReLUs where that is asked for; return layer -> quantizer.

    Args:
        model: float; its ReLUs are swapped in place.
        settings: which layers want it.
        example: one batch of inputs, on the model's device.

    Raises:
        ValueError: If it is asked for without an example.
    """
    found = [name for name, module in model.named_modules() if type(module) in QUANT_TYPES]
    layers = {name: settings.for_layer(name)[1] for name in found}
    names = {name for name, inputs in layers.items() if inputs and inputs.place == "relu_outputs"}
    if not names:
        return {}
    if example is None:
        raise ValueError("place: relu_outputs needs an example, to see which layers read a ReLU")
    with without_traces(model):
        places, calls = find_places(model, set(layers), example)
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
    model.register_forward_pre_hook(restart_calls)
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
    recording = record_forward(model, WATCHED, example)
    places = recording.places(KEEPS_THE_GRID)
    return {n: site for n, site in places.items() if n in layers}, recording.calls_of("relu")


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
