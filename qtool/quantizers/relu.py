"""Quantizers at the outputs of ReLUs: everything that reads a ReLU then reads the grid.

The lower bound of an unsigned grid does ReLU's work, so that the two are one: the quantized ReLU
of Yin et al., 2019, arXiv:1903.05662.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from qtool.graph.calls import CountsCalls
from qtool.quantizers.activations import ActivationQuantizer
from qtool.settings.quantization import Quantization

Place = tuple[str, int]  # name of a ReLU, and which of its calls in one forward pass
KEEPS_THE_GRID = ("max_pool2d", "flatten", "view", "reshape", "contiguous", "dropout")


class QuantReLU(CountsCalls):
    """A ReLU whose output is fake-quantized, by a quantizer of its own for each call.

    Attributes:
        quantizers: one for each call in a forward pass; Identity where the call stays float.
    """

    def __init__(self, quantizers: list[ActivationQuantizer | None]) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(q or nn.Identity() for q in quantizers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized ReLU of x, same shape."""
        call = self.next_call()
        quantizer = self.quantizers[call] if call < len(self.quantizers) else None
        if isinstance(quantizer, ActivationQuantizer):
            return quantizer(x, rectify=True)
        return F.relu(x)


def quant_relus(model: nn.Module) -> dict[str, QuantReLU]:
    """Return every ReLU with quantizers by its name, each once."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantReLU)}


class _FollowReLUs(TorchFunctionMode):
    """Follow what ReLUs put out through functions that keep every value on its grid."""

    def __init__(self) -> None:
        super().__init__()
        self.places = WeakTensorKeyDictionary()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        keeps = getattr(func, "__name__", "") in KEEPS_THE_GRID and isinstance(result, Tensor)
        place = self.place_of(args[0]) if keeps and args else None
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.places[leaf] = place
        return result

    def place_of(self, value: Any) -> Place | None:
        """Return the ReLU whose output a tensor is, also pooled or reshaped."""
        return self.places.get(value) if isinstance(value, Tensor) else None


@torch.no_grad()
def find_places(
    model: nn.Module, layers: set[str], example: Tensor
) -> tuple[dict[str, Place], dict[str, int]]:
    """Run a float model once, and see which layers take the output of a ReLU module.

    Args:
        model: float; its modules of the exact type nn.ReLU count.
        layers: names of the layers to look at.
        example: one batch of inputs.

    Returns:
        Layer -> the ReLU and its call, for layers that are called once; ReLU -> its calls.
    """
    found: dict[str, list[Place | None]] = {}
    calls: dict[str, int] = {}
    follow = _FollowReLUs()

    def after_relu(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            follow.places[output] = (name, calls.get(name, 0))
            calls[name] = calls.get(name, 0) + 1

        return hook

    def before_layer(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            found.setdefault(name, []).append(follow.place_of(args[0]) if args else None)

        return hook

    handles = []
    for name, module in model.named_modules():
        if type(module) is nn.ReLU:
            handles.append(module.register_forward_hook(after_relu(name)))
        elif name in layers:
            handles.append(module.register_forward_pre_hook(before_layer(name)))
    try:
        with follow:
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    once = {name: seen[0] for name, seen in found.items() if len(seen) == 1}
    return {name: place for name, place in once.items() if place is not None}, calls


def shared_places(
    settings: Quantization, places: dict[str, Place]
) -> Iterator[tuple[Place, list[str]]]:
    """Yield each ReLU call that gets a quantizer, with the layers that read its output.

    Layers that want different inputs keep a quantizer of their own instead.
    """
    readers: dict[Place, list[str]] = {}
    for name, place in places.items():
        readers.setdefault(place, []).append(name)
    for place, names in readers.items():
        wanted = [settings.for_layer(name)[1] for name in names]
        first = wanted[0]
        if first is not None and first.place == "relu_outputs" and all(w == first for w in wanted):
            yield place, names
