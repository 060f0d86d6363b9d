"""Options that take one of two words, refused in words of qtool's own."""

from typing import Annotated, Literal

import typer
from typer.models import OptionInfo

from qtool.cli.completion import one_of

WORD = "<str>"  # how help writes an option of plain text


def _one_of(option: str, first: str, second: str, help: str) -> OptionInfo:
    """Return an option that takes one of two words, refused in words of qtool's own."""

    def checked(value: str) -> str:
        if value not in (first, second):
            why = f"{value!r} is neither {first} nor {second}"
            raise typer.BadParameter(why, param_hint=option)
        return value

    offered = one_of([first, second])
    return typer.Option(option, help=help, parser=checked, metavar=WORD, autocompletion=offered)


To = Annotated[
    Literal["integer", "straight_through"],
    _one_of(
        "--to",
        "integer",
        "straight_through",
        help="integer, or straight_through: the run as an STE run.",
    ),
]
Ceil = Annotated[
    Literal["exact", "shifted"],
    _one_of(
        "--ceil",
        "exact",
        "shifted",
        help="For rounding ceil: exact, or shifted (faster, nearly so).",
    ),
]
OnSide = Annotated[
    Literal["weights", "activations"] | None,
    _one_of(
        "--on",
        "weights",
        "activations",
        help="weights or activations: whose estimator differs; default: activations where all that "
        "are named serve a ReLU, else weights.",
    ),
]
OnSchedule = Annotated[
    Literal["alpha", "learning_rate"],
    _one_of(
        "--on",
        "alpha",
        "learning_rate",
        help="alpha of the blends, against the STE; or learning_rate.",
    ),
]

KeepCheckpoints = Annotated[
    Literal["none", "last"] | None,
    _one_of(
        "--keep",
        "none",
        "last",
        help="none or last: checkpoints that a finished trial keeps; default: the last two.",
    ),
]


def _match(value: str) -> str:
    """Return what arms are matched in."""
    if value != "alpha":
        raise typer.BadParameter(f"{value!r} is not alpha", param_hint="--match")
    return value


Match = Annotated[
    Literal["alpha"] | None,
    typer.Option(
        "--match",
        help="alpha: divide weights' learning rates by it, under SGD.",
        parser=_match,
        metavar=WORD,
    ),
]
