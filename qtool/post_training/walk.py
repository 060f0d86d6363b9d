"""A walk through a network: one pass that stops before each layer, and goes on as that is then.

What is done to a layer is so seen by all layers after it, for the price of a single pass.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from qtool.graph.inputs import Inputs
from qtool.graph.sites.running import apart
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.layers import QuantLayer, quant_layers

ELEMENTS = 10_000_000  # of the inputs of one pass: 64 photographs of 224 px, 3,000 of 32 px
Visit = Callable[[str, QuantLayer, Tensor], None]
"""Takes a layer's name, the layer, and what it is given."""


def called_once(model: nn.Module) -> list[str]:
    """Return the quantized layers that a pass of a prepared model calls exactly once, in order."""
    calls = prepared_state(model).recording.calls
    return [name for name in quant_layers(model) if calls[name] == 1]


@torch.no_grad()
def walk(model: nn.Module, inputs: Inputs, visit: Visit) -> None:
    """Run a prepared model on inputs, and visit each layer that is called once before it runs.

    Args:
        model: in evaluation mode; random numbers stay as they were.
        inputs: all at once.
        visit: may change the layer.
    """
    layers = quant_layers(model)

    def stop_at(name: str) -> Callable[..., None]:
        def stop(layer: QuantLayer, args: Sequence[Tensor], kwargs: dict[str, Tensor]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            apart(visit, name, layer, x)

        return stop

    handles = [
        layers[name].register_forward_pre_hook(stop_at(name), with_kwargs=True)
        for name in called_once(model)
    ]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    try:
        with torch.random.fork_rng(devices=devices):
            inputs.copied().call(model)
    finally:
        for handle in handles:
            handle.remove()


def in_one(batches: Sequence[Inputs], elements: int = ELEMENTS) -> Inputs:
    """Return batches as one, of as many rows as have so many elements, at least those of one row.

    Where a tensor has no row for each input, such as a table, the first batch stands alone.
    """
    first = batches[0]
    counts = [_rows(batch) for batch in batches]
    alike = all(
        len(batch.tensors) == len(first.tensors)
        and all(t.ndim and len(t) == rows for t in batch.tensors)
        for batch, rows in zip(batches, counts, strict=True)
    )
    of_a_row = sum(tensor.numel() for tensor in first.tensors) // max(1, counts[0])
    most = max(1, elements // max(1, of_a_row))
    if not alike:
        return first
    taken: list[Inputs] = []
    for batch, rows in zip(batches, counts, strict=True):
        if most > 0:
            taken.append(batch if rows <= most else batch.first(most))
            most -= rows
    return _joined(taken)


def _joined(batches: Sequence[Inputs]) -> Inputs:
    def join(*leaves: object) -> object:
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        return torch.cat(tensors) if tensors else leaves[0]

    first, *others = [(batch.args, dict(batch.kwargs)) for batch in batches]
    args, kwargs = tree_map(join, first, *others)
    return Inputs(args, kwargs)


def _rows(batch: Inputs) -> int:
    return next((len(tensor) for tensor in batch.tensors if tensor.ndim), 0)
