"""The names of a file's inputs and outputs.

A single input is `images`, a single tensor output `logits`. Several inputs carry the names of the
forward's arguments (of *args, input_0 ...), several outputs their keys, or output_0 ...; what lies
deeper adds its own key or place: boxes_0, boxes_1.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass

from torch import Tensor, nn

from qtool.graph.inputs import Inputs

BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def named_inputs(model: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Return every tensor that a model is called with, by its name, in order."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = [parameter.name for parameter in parameters if parameter.kind in BY_POSITION]
    found: list[tuple[str, Tensor]] = []
    for place, value in enumerate(inputs.args):
        extra = place - len(positional)
        found += _leaves(value, f"input_{extra}" if extra >= 0 else positional[place])
    for key, value in inputs.kwargs.items():
        found += _leaves(value, key)
    return {"images": found[0][1]} if len(found) == 1 else _apart(found)


def named_outputs(output: object) -> dict[str, Tensor]:
    """Return every tensor that a model gave, by its name, in order."""
    if isinstance(output, Tensor):
        return {"logits": output}
    by_place = isinstance(output, tuple | list) and not hasattr(output, "_fields")
    found = list(_leaves(output, "output" if by_place else ""))
    return {"logits": found[0][1]} if by_place and len(found) == 1 else _apart(found)


def _leaves(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested tuples, lists, dicts and dataclasses, with their names."""
    if isinstance(value, Tensor):
        yield name, value
        return
    parts: list[tuple[object, object]] = []
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, tuple | list):
        parts = list(zip(getattr(value, "_fields", range(len(value))), value, strict=True))
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [(field.name, getattr(value, field.name)) for field in fields(value)]
    for key, part in parts:
        yield from _leaves(part, f"{name}_{key}" if name else str(key))


def _apart(found: list[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return tensors by names of which none is there twice."""
    named: dict[str, Tensor] = {}
    for name, tensor in found:
        free = name
        while free in named:
            free += "_"
        named[free] = tensor
    return named
