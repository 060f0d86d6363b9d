"""Lists as they are typed, a,b,c: read and checked, with errors that name the option."""

import typer

MOST_SEEDS = 1000


def seeds_of(text: str) -> int | list[int]:
    """Return how many seeds, or the seeds themselves where there is a comma."""
    parts = [part.strip() for part in text.removesuffix(",").split(",")]
    if not all(part.isdecimal() for part in parts):
        raise _bad_seeds(f"{text!r} is neither a number of seeds nor a list such as 1,2,3")
    numbers = [int(part) for part in parts]
    if "," in text:
        if len(set(numbers)) < len(numbers):
            raise _bad_seeds(f"{text!r} names a seed twice")
        return numbers
    if not 1 <= numbers[0] <= MOST_SEEDS:
        raise _bad_seeds(f"{text} is not a number of seeds from 1 to {MOST_SEEDS}; 3 is usual")
    return numbers[0]


def _bad_seeds(why: str) -> typer.BadParameter:
    return typer.BadParameter(why, param_hint="--seeds")


def names_of(text: str) -> list[str]:
    """Return names from a list such as a,b,c."""
    return [name.strip() for name in text.split(",")]


def rates_of(text: str) -> list[float]:
    """Return learning rates from a list such as 0.1,0.05."""
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        why = f"{text!r} is not a list of learning rates such as 0.1,0.05"
        raise typer.BadParameter(why, param_hint="--learning-rates")
    return rates


def looks_of(text: str) -> list[int]:
    """Return numbers of seeds from a list such as 3,5,10."""
    parts = [part.strip() for part in text.split(",")]
    counts = [int(part) for part in parts if part.isdecimal()]
    rising = counts == sorted(set(counts)) and counts[:1] >= [2] and counts[-1] <= MOST_SEEDS
    if len(counts) < len(parts) or not rising:
        why = f"{text!r} is not a list of rising numbers of seeds, from 2 on, such as 3,5,10"
        raise typer.BadParameter(why, param_hint="--looks")
    return counts


def windows_of(text: str) -> list[list[float]]:
    """Return windows [a, b], shares of training, from a list such as 0-0.8,0.2-1."""
    try:
        windows = [[float(end) for end in part.split("-")] for part in text.split(",")]
    except ValueError:
        windows = []
    if not windows or not all(len(w) == 2 and 0 <= w[0] <= w[1] <= 1 for w in windows):
        why = f"{text!r} is not a list of windows a-b with 0 <= a <= b <= 1, such as 0-0.8,0.2-1"
        raise typer.BadParameter(why, param_hint="--windows")
    if len({tuple(window) for window in windows}) < len(windows):
        raise typer.BadParameter(f"{text!r} names a window twice", param_hint="--windows")
    return windows
