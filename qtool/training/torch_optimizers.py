"""Optimizers of torch.optim by their own names, with the parameters that their signatures have.

How one computes (`fused`, `capturable`, ...) and where it goes (`lr`, `maximize`) is not for a
recipe to say; all else is. Weight decay is of weights alone, as with qtool's own.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, TypedDict

import torch
from pydantic import AfterValidator

from qtool.problems import Problem

NOT_FOR_RECIPES = {"params", "lr", "maximize"} | {
    *("foreach", "fused", "capturable", "differentiable")
}
UNFIT = {  # those that torch.optim has, and that cannot train a network as qtool does
    "LBFGS": "computes the loss several times in a step",
    "SparseAdam": "takes sparse gradients only",
    "Muon": "takes matrices only, and convolutions, norms and scales of quantizers are none",
}
SINGLE_KERNEL = {"SGD", "Adam", "AdamW"}  # whose fused form CPUs have, too
GRAPHED = {"SGD"}  # as in a fused kernel it reads its rate from a tensor

Make = Callable[..., torch.optim.Optimizer]


class Rated(TypedDict):
    """What `of_torch` takes of a group of parameters."""

    params: Sequence[torch.Tensor]
    role: str


def of_torch() -> Iterator[tuple[str, Make, bool]]:
    """Yield each name, what makes the optimizer, and whether a CUDA graph may hold its step."""
    for name, kind in vars(torch.optim).items():
        if not isinstance(kind, type) or not issubclass(kind, torch.optim.Optimizer):
            continue
        own = inspect.signature(kind).parameters
        if kind is torch.optim.Optimizer or name in UNFIT or "lr" not in own:
            continue
        yield name, _maker(name, kind, own), "capturable" in own or name in GRAPHED


def unfit(name: str) -> str:
    """Say why an optimizer of torch.optim cannot be chosen, "" where nothing is known of it."""
    return f"{name} {UNFIT[name]}; choose another" if name in UNFIT else ""


def _maker(
    name: str, kind: Callable[..., torch.optim.Optimizer], own: Mapping[str, inspect.Parameter]
) -> Make:
    """Return what takes groups, a rate and the keyword parameters of a torch optimizer."""
    more = {"fused": True} if name in SINGLE_KERNEL else {}
    decay = own["weight_decay"].default if "weight_decay" in own else None

    def make(groups: list[Rated], rate: float, **params: object) -> torch.optim.Optimizer:
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in params.items()}
        parts: list[dict[str, object]] = [{**group} for group in groups]
        if decay is not None:
            on_weights = given.pop("weight_decay", decay)
            for group in parts:
                group["weight_decay"] = on_weights if group["role"] == "weights" else 0.0
        return kind(parts, lr=rate, **given, **more)

    kept = [_keyword(each) for key, each in own.items() if key not in NOT_FOR_RECIPES]
    plain = [
        inspect.Parameter(each, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for each in ("groups", "rate")
    ]
    vars(make)["__signature__"] = inspect.Signature([*plain, *kept])
    make.__name__, make.__doc__ = name, f"Step as torch.optim.{name} does."
    return make


def _keyword(given: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter of a signature as recipes have it: a list in place of a tuple."""
    default = given.default
    kind: object = given.annotation
    if isinstance(default, bool):
        kind = bool
    elif isinstance(default, int | float):
        kind, default = float, float(default)
    elif isinstance(default, tuple):
        kind, default = _list_of(len(default), empty=None in default), list(default)
    elif isinstance(default, str):
        kind = str
    elif default is None or default is given.empty:
        kind = object
    return given.replace(kind=given.KEYWORD_ONLY, default=default, annotation=kind)


def _list_of(length: int, *, empty: bool) -> object:
    """Return the type of a list of so many numbers, some of which may be null."""

    def check(value: list[float]) -> list[float]:
        if len(value) != length:
            raise ValueError(f"{value} is not a list of {length} numbers")
        return value

    inner = list[float | None] if empty else list[float]
    return Annotated[inner, AfterValidator(check)]


def refused_by_torch(name: str, make: Make, params: Mapping[str, object]) -> list[Problem]:
    """Return what a torch optimizer itself says of its parameters, such as a beta above 1."""
    one = torch.zeros(1, 1, requires_grad=True)
    try:
        make([{"params": [one], "role": "weights"}], 0.1, **params)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return [("", f"{name} refuses its parameters: {reason}")]
    return []
