"""Losses and optimizers of the user's own, put into the tables that recipes choose from.

A loss is a function of logits and labels, as those of qtool are, or a class, such as an nn.Module,
whose object is one. An optimizer is a class, or a function, that takes parameter groups and `lr`.
"""

from collections.abc import Mapping
from inspect import Parameter
from typing import cast

import torch
from torch import Tensor, nn

from qtool.errors import RecipeError
from qtool.settings.user_code import UserCode
from qtool.settings.user_parameters import as_member, parameters_of, settable
from qtool.settings.user_parts import Part, load_part
from qtool.training.losses import LOSSES, Loss
from qtool.training.optimizers import OPTIMIZERS, Group, with_decay

_CLASSES: dict[str, Part] = {}  # losses that are classes, by their names
GIVEN_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def load_loss(name: str, code: UserCode, params: Mapping[str, object]) -> None:
    """Put a user's loss into LOSSES.

    Raises:
        RecipeError: If it is not there, may not run, or takes no logits and labels.
    """
    del params
    part = load_part(name, code, "loss")
    _CLASSES.pop(name, None)
    if isinstance(part.function, type):
        _CLASSES[name] = part
        LOSSES.add(as_member(part, _no_loss, settable(part), ("logits", "labels")), name)
        return
    first = [p for p in parameters_of(part).values() if p.kind in GIVEN_BY_POSITION]
    if len(first) < 2:
        raise RecipeError(f"{part.place} must take logits and labels: (logits, labels, *, ...)")
    own = settable(part, positional=2)
    LOSSES.add(as_member(part, _checked(part, part.function), own, ("logits", "labels")), name)


def _no_loss(*args: object, **params: object) -> Tensor:
    """Stand for a class in the table, where its parameters are checked; see `build_loss`."""
    raise TypeError("an object of a class is a loss, not the class")


def build_loss(name: str, params: Mapping[str, object]) -> Loss:
    """Return a loss; an object of a user's class is made once.

    Raises:
        RecipeError: If the name or a parameter is wrong, or the user's code fails.
    """
    made = LOSSES.build(name, **params)
    part = _CLASSES.get(name)
    if part is None:
        return made
    found = part.call(**params)
    if not callable(found):
        raise RecipeError(f"{part.place} is not called with logits and labels; define __call__")
    return _checked(part, found)


def _checked(part: Part, loss: object) -> Loss:
    """Return a loss with its errors, and what it returns, blamed on the user's file and line."""
    place = part.place
    called = cast(Loss, loss)

    def checked(logits: Tensor, labels: Tensor, **params: object) -> Tensor:
        if isinstance(loss, nn.Module):
            loss.to(logits.device)
        try:
            found = called(logits, labels, **params)
        except (torch.OutOfMemoryError, RecipeError):
            raise
        except (Exception, SystemExit) as error:
            raise part.error(error) from error
        if not isinstance(found, Tensor):
            raise RecipeError(f"{place} returned {type(found).__name__}, not a tensor")
        if found.ndim:
            shape = f"{place} returned the shape {list(found.shape)}"
            raise RecipeError(f"{shape}; a loss is a mean over the batch, of shape []")
        return found

    return checked


def load_optimizer(name: str, code: UserCode, params: Mapping[str, object]) -> None:
    """Put a user's optimizer into OPTIMIZERS; what decays, decays on weights only.

    Raises:
        RecipeError: If it is not there, may not run, or takes no parameters or no `lr`.
    """
    del params
    part = load_part(name, code, "optimizer")
    accepted = parameters_of(part)
    any_keyword = any(p.kind is Parameter.VAR_KEYWORD for p in accepted.values())
    if not accepted or not ("lr" in accepted or any_keyword):
        raise RecipeError(f"{part.place} must take parameters and lr: (params, lr, ...)")

    def build(groups: list[Group], rate: float, **own: object) -> torch.optim.Optimizer:
        decay = own.get("weight_decay", getattr(accepted.get("weight_decay"), "default", None))
        decaying = with_decay(groups, decay) if isinstance(decay, int | float) else groups
        made = part.call(decaying, lr=rate, **own)
        if not isinstance(made, torch.optim.Optimizer):
            raise RecipeError(f"{part.place} returned {type(made).__name__}, not an optimizer")
        return made

    own = settable(part, {"lr"}, positional=1)
    OPTIMIZERS.add(as_member(part, build, own, ("groups", "rate")), name)
