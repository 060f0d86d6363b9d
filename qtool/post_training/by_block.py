"""Rounding that is learned block by block; layers that stand in no block are learned alone."""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from qtool.post_training.adaround import Learning
from qtool.post_training.begin import choose_activations
from qtool.post_training.bias_correction import shift_output
from qtool.post_training.blocks import Block, blocks_in
from qtool.post_training.brecq import Images, learn_block
from qtool.post_training.by_layer import NO_BETTER, Network, by_adaround, choose_layer, part_by_part
from qtool.post_training.held_codes import codes_of
from qtool.post_training.kept import Unit, state_of
from qtool.post_training.methods import METHODS, Calibrated, Positive
from qtool.post_training.progress import Progress
from qtool.post_training.seen import passes
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.layers import QuantLayer
from qtool.reports.improvements import Applied

MOST_BYTES = 2**30  # of what a block reads and makes, on images of its own


@METHODS.add
@torch.no_grad()
def brecq(
    given: Calibrated,
    *,
    iterations: Positive = Learning.iterations,
    images: Positive = Learning.images,
) -> list[Applied]:
    """Learn the rounding and the steps of each block, so that the block's output changes least.

    Args:
        given: the network.
        iterations: for each block, or layer that stands in none.
        images: in each iteration.
    """
    how = Learning(iterations=iterations, images=images)
    ranges = choose_activations(given)
    network = Network.of(given)
    graph = prepared_state(given.model).graph
    blocks = blocks_in(given.model, network.calls, graph, given.batches[0])
    what = "layer" if all(block.is_layer for block in blocks) else "block"
    by_name = {block.name: block for block in blocks}

    def learn(name: str, progress: Progress) -> Unit:
        block = by_name[name]
        if not block.is_layer:
            return _learned(network, block, how, progress)
        part = network.part(name, partial(progress.within, name=name))
        return choose_layer(network, name, part, partial(by_adaround, how=how))

    names = list(by_name)
    return ranges + part_by_part(network, names, learn, method="brecq", said=str(how), what=what)


def _learned(network: Network, block: Block, how: Learning, progress: Progress) -> Unit:
    """Learn the rounding of one block, and correct the biases in it where that helps."""
    model, name = network.given.model, block.name
    parts = [network.part(layer, lambda share: None) for layer in block.layers]
    scaled = [part.scaled for part in parts if part.scaled is not None]
    images, generator = _images(network, name), network.generator(name)
    module = model.get_submodule(name)
    layers = {n: cast(QuantLayer, model.get_submodule(n)) for n in block.layers}
    before = images.error(module)
    after = learn_block(
        module,
        layers,
        images,
        name,
        how=how,
        generator=generator,
        each=partial(progress.within, name=name),
    )
    note = "" if after < before else NO_BETTER
    for layer_name in layers:
        after = _shifted(network, layer_name, module, images, after)
    codes = {n: codes_of(layer).to(torch.int8) for n, layer in layers.items()}
    row = Applied(
        layer=name, step="reconstruction", error_before=before, error_after=after, note=note
    )
    return Unit(codes=codes, applied=[*scaled, row])


def _shifted(network: Network, name: str, block: nn.Module, images: Images, before: float) -> float:
    """Correct the bias of a layer where its block's output gets better; return that's error."""
    model, layer = network.given.model, network.layer(name)
    part = network.part(name, lambda share: None)
    by = part.seen.shift(part.on_grid.values(part.nearest))
    kept, bias = state_of(model), layer.bias
    shift_output(model, name, layer, by)
    after = images.error(block)
    if after < before:
        return after
    if bias is None:
        layer.bias = None
    for key, value in model.state_dict().items():
        if key in kept:
            value.copy_(kept[key])
    return before


def _images(network: Network, name: str) -> Images:
    """Return what a block reads and should make, of as many images as there is room for."""
    rounded: list[Tensor] = []
    exact: list[Tensor] = []
    outputs: list[Tensor] = []
    taken = 0
    for batch in network.given.batches:
        ((x, _),) = passes(network.given.model, name, batch)
        ((x_float, y),) = passes(network.twin, name, batch)
        rounded.append(x)
        exact.append(x_float)
        outputs.append(y)
        taken += 4 * (2 * x.numel() + y.numel())
        if taken > MOST_BYTES:
            break
    return Images(torch.cat(rounded), torch.cat(exact), torch.cat(outputs))
