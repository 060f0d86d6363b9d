"""What a layer reads and makes on calibration images: in the quantized network, and in the float.

A forward pass ends where the layer is done, and only as many of its patches are kept as are asked
for: memory is bounded whatever the network.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from qtool.graph.copies import copy_of
from qtool.graph.inputs import Inputs
from qtool.graph.sites.running import apart
from qtool.post_training.patches import of_positions, patches, product, taken
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import QuantLayer, quant_layers

MOST_BYTES = 2**28  # of the patches of one layer


class _Enough(Exception):  # noqa: N818  no error: ends a pass whose rest nobody needs
    """Ends a forward pass."""


@dataclass(frozen=True)
class Patches:
    """What a layer reads and should make.

    Attributes:
        inputs: float32 [P, groups, K], as the quantized network so far has them.
        outputs: float32 [P, C], of the float network at the same places.
        bias: float32 [C], of the layer; zeros where it has none.
    """

    inputs: Tensor
    outputs: Tensor
    bias: Tensor

    def made_by(self, rows: Tensor) -> Tensor:
        """Return what the layer makes with these rows of its weight, [P, C]."""
        return product(self.inputs, rows) + self.bias

    def shift(self, rows: Tensor) -> Tensor:
        """Return what the mean of each channel is off by with these rows, float64 [C]."""
        return (self.outputs - self.made_by(rows)).double().mean(0)

    def error(self, made: Tensor, follows: Callable[[Tensor], Tensor] | None = None) -> float:
        """Return the squared difference of other outputs [P, C] from these.

        As a share of how far these are from the mean of their channel.

        Args:
            made: at the same places.
            follows: of outputs what is compared in their place.
        """
        wanted = self.outputs
        if follows is not None:
            made, wanted = follows(made), follows(wanted)
        spread = (wanted - wanted.mean(0)).double().square().sum()
        apart = (made - wanted).double().square().sum()
        return float(apart / spread.clamp_min(torch.finfo(torch.float64).tiny))


@torch.no_grad()
def float_twin(model: nn.Module) -> nn.Module:
    """Return a copy of a prepared model that rounds nothing: the float network that it was made of.

    Args:
        model: whose weights are still as they were given, or as equalization has made them.
    """
    twin = copy_of(model).eval()
    for module in twin.modules():
        if isinstance(module, FakeQuantize):
            module.passes_on = True
    return twin.requires_grad_(requires_grad=False)


@torch.no_grad()
def order_of_calls(model: nn.Module, batch: Inputs) -> dict[str, int]:
    """Return the quantized layers in the order of a pass, and how often that calls each."""
    calls: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def count(*_: object) -> None:
            calls[name] = calls.get(name, 0) + 1

        return count

    handles = [m.register_forward_hook(hook(n)) for n, m in quant_layers(model).items()]
    try:
        batch.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@torch.no_grad()
def passes(
    model: nn.Module, name: str, batch: Inputs, *, calls: int = 1
) -> list[tuple[Tensor, Tensor]]:
    """Return what a module reads first, and makes, in each of its calls in one pass.

    A layer's input is what its own quantizer makes of it, where it has one.

    Args:
        model: in evaluation.
        name: of the module.
        batch: of the pass, which ends with the last of the calls.
        calls: how often the pass calls it.
    """
    read: list[Tensor] = []  # copies: what follows may overwrite what a pass has made
    made: list[Tensor] = []

    def before(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        x = cast(Tensor, args[0] if args else next(iter(kwargs.values())))
        rounds = module.input_quantizer if isinstance(module, QuantLayer) else None
        read.append(x.clone() if rounds is None else apart(rounds, x))

    def after(module: nn.Module, args: object, output: object) -> None:
        made.append(cast(Tensor, output).clone())
        if len(made) == calls:
            raise _Enough

    module = model.get_submodule(name)
    handles = [
        module.register_forward_pre_hook(before, with_kwargs=True),
        module.register_forward_hook(after),
    ]
    try:
        with suppress(_Enough):
            batch.call(model)
    finally:
        for handle in handles:
            handle.remove()
    return list(zip(read, made, strict=True))


@torch.no_grad()
def patches_seen(
    model: nn.Module,
    twin: nn.Module,
    name: str,
    batches: Sequence[Inputs],
    *,
    calls: int,
    generator: torch.Generator,
) -> Patches:
    """Return what a layer reads in a quantized network, and makes in its float twin.

    Args:
        model: the quantized network so far.
        twin: from `float_twin`.
        name: of the layer.
        batches: calibration images.
        calls: how often a pass calls it.
        generator: on the CPU, draws the places that are kept where there are too many.
    """
    layer = cast(QuantLayer, model.get_submodule(name))
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for batch in batches:
        rounded = passes(model, name, batch, calls=calls)
        exact = passes(twin, name, batch, calls=calls)
        for (x, _), (_, y) in zip(rounded, exact, strict=True):
            view = patches(layer, x.float(), y.shape)
            made = of_positions(layer, y.float())
            axes = made.ndim - 1
            values = view.shape[axes:].numel() + made.shape[-1]
            room = MOST_BYTES // (4 * values * len(batches) * calls)
            places = _places(made.shape[:axes].numel(), max(1, room), generator)
            places = places.to(x.device)
            inputs.append(taken(view, places, axes).flatten(2))
            outputs.append(taken(made, places, axes))
    channels = outputs[0].shape[1]
    bias = torch.zeros(channels) if layer.bias is None else layer.bias.detach().float()
    return Patches(torch.cat(inputs), torch.cat(outputs), bias.to(outputs[0].device))


def _places(count: int, most: int, generator: torch.Generator) -> Tensor:
    """Return which of `count` places are kept, in order, int64."""
    if count <= most:
        return torch.arange(count)
    return torch.randperm(count, generator=generator)[:most].sort().values
