"""The networks of timm, `timm:NAME` in a recipe; loaded only where one is named.

Source: https://github.com/huggingface/pytorch-image-models
"""

from collections import OrderedDict
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from qtool.errors import DataError, RecipeError
from qtool.problems import Problem, shown
from qtool.settings.user_parts import PREFIXES

PREFIX = "timm:"
assert PREFIX.removesuffix(":") in PREFIXES
GIVEN = ("num_classes", "in_chans", "checkpoint_path", "features_only", "cache_dir")


class _Timm(Protocol):
    """What is used of timm."""

    def list_models(self, filter: str = "", *, pretrained: bool = False) -> list[str]: ...

    def create_model(self, model_name: str, **params: object) -> nn.Module: ...


def is_timm(name: str) -> bool:
    """Tell whether a name is timm:NAME."""
    return name.startswith(PREFIX)


def timm_problems(name: str, params: Mapping[str, object]) -> list[Problem]:
    """Return every (parameter, what is wrong with it); `""` stands for the name itself."""
    if find_spec("timm") is None:
        return [("", f'{name}: timm is not installed; pip install "qtool[timm]"')]
    timm, own = _timm(), name.removeprefix(PREFIX)
    known = timm.list_models()
    base = own.partition(".")[0]  # what follows names weights
    if base not in known:
        close = get_close_matches(base, known, n=1)
        hint = f"; did you mean {PREFIX}{close[0]}?" if close else "; timm.list_models() names all"
        return [("", f"unknown model {shown(name)}{hint}")]
    taken = [key for key in params if key in GIVEN or key.startswith("pretrained")]
    return [(key, f"{key} is given by qtool; leave it out") for key in taken]


def build_timm(name: str, classes: int, channels: int, params: Mapping[str, object]) -> nn.Module:
    """Return a network with fresh weights.

    Raises:
        RecipeError: If it has no such parameter, or fails.
    """
    if found := timm_problems(name, params):  # parameters may come from a file
        raise RecipeError("; ".join(why for _, why in found))
    own = name.removeprefix(PREFIX)
    sizes = {"num_classes": classes, "in_chans": channels}
    try:
        with torch.device("cpu"):
            return _timm().create_model(own, pretrained=False, **sizes, **params)
    # its builders raise whatever they come upon
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecipeError(f"{name}: {reason}") from error


def published_weights(name: str, channels: int) -> "OrderedDict[str, Tensor]":
    """Return the weights that timm publishes for a network, with their own head.

    Raises:
        DataError: If they cannot be had.
    """
    own = name.removeprefix(PREFIX)
    try:
        made = _timm().create_model(own, pretrained=True, in_chans=channels)
    # the network, the disk and a name without weights each fail with errors of their own
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{name}: the published weights could not be had ({reason}); set model.weights to "
            "the path of a file"
        ) from error
    return OrderedDict(made.state_dict())


def _timm() -> _Timm:
    return cast(_Timm, import_module("timm"))
