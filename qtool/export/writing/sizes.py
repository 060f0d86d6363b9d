"""Images of any height and width: whether a network takes them, and what a file calls them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from qtool.graph.inputs import Inputs

MORE = ((3, 5), (32, 64))
"""Rows and columns that images of another size have more: odd ones, or as often halved as before"""
RANKS = (4, 5)  # of images, and of films
WORDS = ("height", "width")
_SYMBOL = re.compile(r"\b[a-z]\w*\b")


WINDOWS = "windows of a pooling depend on it"


class FixedSizeError(ValueError):
    """A network whose code takes other sizes, and of which a file cannot."""


@dataclass(frozen=True)
class OtherSize:
    """The inputs of a network in another size.

    Attributes:
        inputs: None where there are none.
        why: there are none.
        more: rows and columns that images have more.
    """

    inputs: Inputs | None = None
    why: str = ""
    more: tuple[int, int] = (0, 0)


def are_images(tensor: Tensor) -> bool:
    """Tell whether an input is images [N, C, H, W], or films [N, C, T, H, W]."""
    return tensor.ndim in RANKS and tensor.is_floating_point()


def grown(inputs: Inputs, more: tuple[int, int]) -> Inputs:
    """Return inputs with images that have more rows and columns, each of them the nearest one."""

    def resized(x: Tensor) -> Tensor:
        if not are_images(x):
            return x
        *around, height, width = x.shape[2:]
        return F.interpolate(x, (*around, height + more[0], width + more[1]))

    return inputs.each(resized)


@torch.no_grad()
def in_another_size(model: nn.Module, inputs: Inputs) -> OtherSize:
    """Return inputs in another size that a network takes, or why it takes none."""
    if not any(map(are_images, inputs.tensors)):
        return OtherSize(why="nothing that goes in is images")
    said = ""
    for more in MORE:
        larger = grown(inputs.first(1), more)
        try:
            larger.call(model)
        except Exception as error:  # whatever a network says to an image that it does not take
            lines = str(error).strip().splitlines() or [repr(error)]
            height, width = next(x.shape[-2:] for x in larger.tensors if are_images(x))
            said = f"the network does not take {height} x {width}: {lines[0]}"
        else:
            return OtherSize(grown(inputs, more), more=more)
    return OtherSize(why=said)


def name_sizes(graph: ir.Graph, given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Call open sizes of images height and width, in a whole graph.

    Returns:
        Input -> which of the two are open.
    """
    images = {name for name, tensor in given.items() if are_images(tensor)}
    names: dict[str, str] = {}
    found: dict[str, list[str]] = {}
    for value in graph.inputs:
        if value.name not in images or value.shape is None:
            continue
        opened = dict(zip(WORDS, value.shape[-2:], strict=True))
        sizes = {word: symbol for word, n in opened.items() if (symbol := _symbol(n))}
        found[value.name] = list(sizes)
        square = len(set(sizes.values())) < len(sizes)
        for word, symbol in sizes.items():
            own = "size" if square else word
            names.setdefault(symbol, own if len(images) == 1 else f"{value.name}_{own}")
    for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]:
        if value.shape is not None:
            value.shape = ir.Shape([_named(size, names) for size in value.shape])
    return found


def refuse_windows_of_size(graph: torch.fx.Graph) -> None:
    """Check that no pooling has windows that depend on the size of images.

    ONNX has none of that kind, and torch.onnx writes those of the size at hand.

    Raises:
        FixedSizeError: If one has.
    """
    for node in graph.nodes:
        if "adaptive" in str(node.target) and set(tree_leaves(node.args[1])) != {1}:
            raise FixedSizeError(WINDOWS)


def _symbol(size: int | ir.SymbolicDim) -> str:
    """Return what torch calls an open size, "" for one that is closed.

    One that the code made a number of is called by that number.
    """
    text = "" if isinstance(size, int) or size.value is None else str(size.value)
    return "" if text.isdigit() else text


def _named(size: int | ir.SymbolicDim, names: Mapping[str, str]) -> int | str | None:
    """Return a size by the names of those that it follows from."""
    if symbol := _symbol(size):
        return _SYMBOL.sub(lambda found: names.get(found[0], found[0]), symbol)
    if isinstance(size, int):
        return size
    return None if size.value is None else int(size.value)
