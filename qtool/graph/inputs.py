"""The form of a model's inputs: one tensor, several by position, or by keyword.

An example fixes the form: a tensor is the only input, a tuple (or list) holds the inputs by
position, a dict by keyword. The batches of a loader may hold more, such as labels: with a tensor
the first entry of a tuple is the input, with a tuple of n the first n are, with a dict its keys.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from copy import copy
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import chain
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

T = TypeVar("T")
Place = int | str  # a position, or a keyword
SHOWN = 8  # keys or entries of a batch in a message


@dataclass(frozen=True)
class Inputs:
    """What a model is called with.

    Attributes:
        args: by position; tensors, nested in tuples, lists, dicts and dataclasses, or anything.
        kwargs: by keyword.
    """

    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, example: object) -> "Inputs":
        """Return the inputs that an example holds.

        Raises:
            ValueError: If it is no tensor, tuple, list or dict, or holds no tensor.
        """
        if isinstance(example, Inputs):
            return example
        inputs = None
        if isinstance(example, Tensor):
            inputs = cls((example,))
        elif isinstance(example, Mapping) and all(isinstance(key, str) for key in example):
            inputs = cls((), dict(cast(Mapping[str, object], example)))
        elif isinstance(example, tuple | list):
            inputs = cls(tuple(example))
        if inputs is None or not inputs.tensors:
            raise ValueError(
                f"example is {described(example)}; give one batch of inputs: a tensor, a tuple of "
                f"inputs by position, or a dict of inputs by keyword"
            )
        return inputs

    @property
    def tensors(self) -> list[Tensor]:
        """Return every tensor, in order."""
        return list(tensors_in((self.args, dict(self.kwargs))))

    @property
    def named(self) -> dict[str, object]:
        """Return each input by its name in messages: `x` by keyword, `input 0` by position."""
        return {f"input {place}": value for place, value in enumerate(self.args)} | dict(
            self.kwargs
        )

    def call(self, model: Callable[..., object]) -> object:
        """Return what the model makes of the inputs."""
        return model(*self.args, **self.kwargs)

    def to(self, device: torch.device | None) -> "Inputs":
        """Return the inputs on a device; None leaves them where they are."""
        if device is None:
            return self
        return self.each(lambda tensor: tensor.to(device))

    def first(self, rows: int) -> "Inputs":
        """Return the first rows of every tensor whose first dimension is the batch, copied.

        The batch is the first dimension of the first tensor that has one.
        """
        sizes = [len(tensor) for tensor in self.tensors if tensor.ndim]
        batch = sizes[0] if sizes else 0

        def shortened(tensor: Tensor) -> Tensor:
            of_batch = tensor.ndim > 0 and len(tensor) == batch
            return (tensor[:rows] if of_batch else tensor).detach().clone()

        return self.each(shortened)

    def copied(self) -> "Inputs":
        """Return the inputs in tensors of their own, which a model may change in place."""
        return self.each(lambda tensor: tensor.detach().clone())

    def each(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """Return the inputs with every tensor changed; what is no tensor is passed through."""
        args = tuple(map_tensors(change, value) for value in self.args)
        return Inputs(args, {key: map_tensors(change, v) for key, v in self.kwargs.items()})


@dataclass(frozen=True)
class Form:
    """Where in a model's call the entries of a batch go.

    Attributes:
        places: of the inputs that a batch gives, in its order.
        of_tensors: those of them that are tensors.
        alone: there is one input, a tensor; a batch is that tensor, or begins with it.
        constants: arguments that no batch gives, by their places.
    """

    places: tuple[Place, ...] = (0,)
    of_tensors: frozenset[Place] = frozenset([0])
    alone: bool = True
    constants: Mapping[Place, object] = field(default_factory=dict)

    @classmethod
    def of(cls, example: object) -> "Form":
        """Return the form that an example fixes.

        Raises:
            ValueError: If it is no tensor, tuple, list or dict, or holds no tensor.
        """
        inputs = Inputs.of(example)
        given = _by_place(inputs)
        return cls(tuple(given), _of_tensors(given), alone=isinstance(example, Tensor))

    @classmethod
    def of_call(cls, inputs: Inputs) -> "Form":
        """Return the form of a call that was seen: what held no tensor stays as it was."""
        given = _by_place(inputs)
        places = tuple(p for p, value in given.items() if any(True for _ in tensors_in(value)))
        of_tensors = _of_tensors(given)
        alone = len(places) == 1 and of_tensors == frozenset(places)
        constants = {place: value for place, value in given.items() if place not in places}
        return cls(places, of_tensors, alone, constants)

    def take(self, batch: object) -> Inputs:
        """Return the inputs that a loader's batch holds.

        Raises:
            ValueError: If the batch does not have this form; names what it is, and what it lacks.
        """
        entries = dict(zip(self.places, self._entries(batch), strict=True))
        for place in self.of_tensors:
            if not isinstance(entries[place], Tensor):
                name = f"input {place}" if isinstance(place, int) else place
                raise ValueError(
                    f"{name} of a batch is {described(entries[place])}, not a tensor as in the "
                    f"example; a batch must be {self}"
                )
        given = {**self.constants, **entries}
        args = [given[place] for place in sorted(p for p in given if isinstance(p, int))]
        return Inputs(tuple(args), {p: value for p, value in given.items() if isinstance(p, str)})

    def _entries(self, batch: object) -> list[object]:
        """Return what goes to each place."""
        if isinstance(batch, Inputs):
            given = _by_place(batch)
            return [given.get(place) for place in self.places]
        if self.alone and isinstance(batch, Tensor):
            return [batch]
        keywords = [place for place in self.places if isinstance(place, str)]
        if 0 < len(keywords) < len(self.places):
            raise ValueError(
                "the model was called with inputs by position and by keyword, which no batch can "
                "be told from; give prepare an example, a tuple or a dict, or "
                "qtool.graph.inputs.Inputs(by_position, by_keyword), and such batches"
            )
        if keywords and isinstance(batch, Mapping):
            if missing := [key for key in keywords if key not in batch]:
                raise ValueError(
                    f"a batch lacks {', '.join(map(repr, missing))}: it is {described(batch)}, "
                    f"and must be {self}"
                )
            return [batch[key] for key in keywords]
        by_position = self.alone or not keywords
        if by_position and isinstance(batch, tuple | list) and len(batch) >= len(self.places):
            return list(batch[: len(self.places)])
        raise ValueError(f"a batch is {described(batch)}; by the example it must be {self}")

    def __str__(self) -> str:
        """Return what a batch must be, in words."""
        if self.alone:
            return "a tensor, or a tuple or list that begins with it"
        if all(isinstance(place, int) for place in self.places):
            return f"a tuple or list that begins with {len(self.places)} inputs"
        return f"a dict with the keys {', '.join(map(repr, self.places))}"


def inputs_from(
    batches: Iterable[object], form: Form | None, model: nn.Module, asker: str
) -> Iterator[Inputs]:
    """Return the inputs in each batch of a loader, on the model's device.

    The first batch is taken at once, so that a loader that gives nothing changes nothing.

    Args:
        batches: as a loader gives them.
        form: of the model's inputs; None takes each batch for, or to begin with, one tensor.
        model: that is to be called.
        asker: the function that needs batches, in messages.

    Raises:
        ValueError: If there is no batch, or one does not have the form.
    """
    if isinstance(batches, Tensor | Mapping | str):
        raise ValueError(
            f"{asker} takes a loader or a list of batches, not {described(batches)}; "
            f"give [batch] for a single one"
        )
    form, device = form or Form(), device_of(model)
    left = iter(batches)
    for first in left:
        begun = form.take(first).to(device)
        return chain([begun], (form.take(batch).to(device) for batch in left))
    raise ValueError(f"{asker} needs at least one batch, and was given none")


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device of a model's first parameter, or buffer; None where it has neither."""
    return next((t.device for t in chain(model.parameters(), model.buffers())), None)


def has_float64(device: torch.device | None) -> bool:
    """Tell whether a device computes in float64; those of Apple do not."""
    return device is None or device.type != "mps"


def where_float64(x: Tensor) -> Tensor:
    """Return a tensor, on the CPU where its device does not compute in float64."""
    return x if has_float64(x.device) else x.cpu()


def tensors_in(tree: object) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists, dicts and dataclasses, and kinds of these."""
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            yield leaf
        elif leaf is None or isinstance(leaf, str | bytes | int | float | nn.Module):
            continue  # most of what modules keep; an abstract class, as below, is slow to ask for
        elif isinstance(leaf, Mapping):  # of a class that torch does not look into
            yield from tensors_in(list(leaf.values()))
        elif isinstance(leaf, tuple | list):
            yield from tensors_in([*leaf])
        elif is_dataclass(leaf) and not isinstance(leaf, type):
            yield from tensors_in([getattr(leaf, part.name) for part in fields(leaf)])


def described(given: object) -> str:
    """Return in words what was given."""
    if isinstance(given, Mapping):
        keys = [repr(key) for key in given]
        more = ", ..." if len(keys) > SHOWN else ""
        return f"a dict with the keys {', '.join(keys[:SHOWN])}{more}" if keys else "an empty dict"
    if isinstance(given, tuple | list):
        names = [type(entry).__name__ for entry in given[:SHOWN]]
        more = ", ..." if len(given) > SHOWN else ""
        kind = "tuple" if isinstance(given, tuple) else "list"
        return f"a {kind} of {', '.join(names)}{more}" if names else f"an empty {kind}"
    return f"a {type(given).__name__}" if given is not None else "None"


def map_tensors(change: Callable[[Tensor], object], tree: object) -> object:
    """Return a tree with every tensor in it changed."""

    def changed(leaf: object) -> object:
        if isinstance(leaf, Tensor):
            return change(leaf)
        if isinstance(leaf, MutableMapping | list):  # of a class that torch does not look into
            made = copy(leaf)
            for key in leaf if isinstance(leaf, MutableMapping) else range(len(leaf)):
                made[key] = map_tensors(change, leaf[key])
            return made
        if isinstance(leaf, tuple):
            return type(leaf)(map_tensors(change, part) for part in leaf)
        if is_dataclass(leaf) and not isinstance(leaf, type):
            parts = {part.name: getattr(leaf, part.name) for part in fields(leaf) if part.init}
            return replace(leaf, **{name: map_tensors(change, v) for name, v in parts.items()})
        return leaf

    return tree_map(changed, tree)


def in_order(arguments: Iterable[str], kwargs: Mapping[str, T]) -> dict[str, T]:
    """Return arguments by keyword in the order of a signature, whatever order they came in."""
    known = [name for name in arguments if name in kwargs]
    return {name: kwargs[name] for name in (*known, *(n for n in kwargs if n not in known))}


def _by_place(inputs: Inputs) -> dict[Place, object]:
    """Return the arguments by position and keyword."""
    return {**dict(enumerate(inputs.args)), **inputs.kwargs}


def _of_tensors(given: Mapping[Place, object]) -> frozenset[Place]:
    return frozenset(place for place, value in given.items() if isinstance(value, Tensor))
