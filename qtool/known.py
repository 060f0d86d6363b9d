"""The names that a recipe may choose, as registry.json has them: read without torch.

The tables themselves stand in code that computes, which loads torch. What can be said of their
members without computing lies in a file beside this one, which `python -m tests.docs --write`
makes of the tables, and a test holds against them.
"""

import json
from functools import cache
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, get_args

from qtool.errors import InputError
from qtool.problems import did_you_mean

FILE = Path(__file__).with_name("registry.json")
Family = Literal[
    "models",
    "data",
    "estimators",
    "ranges",
    "schedules",
    "losses",
    "optimizers",
    "augmentations",
    "roundings",
    "targets",
]
FAMILIES: tuple[Family, ...] = get_args(Family)


class KnownParameter(TypedDict):
    """What a recipe may set of a choice.

    Attributes:
        name: its key.
        schema: JSON Schema of its values.
        default: absent where it must be given.
        scheduled: it may change in training, and takes a schedule, too.
        what: from the docstring, or "".
    """

    name: str
    schema: dict[str, object]
    default: NotRequired[object]
    scheduled: NotRequired[bool]
    what: str


class Known(TypedDict):
    """A choice.

    Attributes:
        name: as recipes have it.
        summary: first line of its docstring.
        parameters: what may be set of it.
        weights: of a published model, the names of the weights that there are.
        size: of a published model, how many weights it has, for 1000 classes.
        accuracy: of a published model, top-1 on ImageNet by its DEFAULT weights, 0..1.
    """

    name: str
    summary: str
    parameters: list[KnownParameter]
    weights: NotRequired[list[str]]
    size: NotRequired[int]
    accuracy: NotRequired[float]


class Registered(TypedDict):
    """registry.json.

    Attributes:
        torchvision: version whose models are listed.
        families: the choices of each family, in the order of its table.
    """

    torchvision: str
    families: dict[str, list[Known]]


@cache
def registered() -> Registered:
    """Return what registry.json says."""
    made: Registered = json.loads(FILE.read_text(encoding="utf-8"))
    return made


def known(family: str) -> list[Known]:
    """Return the choices of a family.

    Raises:
        InputError: If there is no such family.
    """
    families = registered()["families"]
    if family not in families:
        raise InputError(f"nothing is listed as {family}{did_you_mean(family, families)}")
    return families[family]


def known_names(family: Family) -> list[str]:
    """Return the names of a family, in the order of its table."""
    return [each["name"] for each in known(family)]
