"""A network of the user's own, put into the table that recipes choose from.

It is an nn.Module class, or a function that returns a module. The number of classes, the channels
and the size of the images are given to it where its signature has them and the recipe does not.
"""

from collections.abc import Mapping
from inspect import Parameter

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from qtool.errors import QtoolError, RecipeError
from qtool.models.papers import MODELS
from qtool.settings.user_code import UserCode
from qtool.settings.user_parameters import as_member, parameters_of, settable
from qtool.settings.user_parts import Part, is_users, load_part

CLASSES = ("num_classes", "classes")  # the first that a signature has is given
CHANNELS = ("channels", "in_channels", "in_chans")
SIZE = ("image_size",)
_PARTS: dict[str, Part] = {}


def load_model(name: str, code: UserCode, params: Mapping[str, object]) -> None:
    """Put a user's network into MODELS.

    Raises:
        RecipeError: If it is not there, may not run, or takes what no recipe gives.
    """
    del params
    part = load_part(name, code, "model")
    accepted = parameters_of(part)

    def build(classes: int, channels: int, image_size: int, /, **own: object) -> nn.Module:
        given: dict[str, object] = {}
        for names, value in ((CLASSES, classes), (CHANNELS, channels), (SIZE, image_size)):
            known = next((n for n in names if n in accepted), None)
            if known is not None and not set(names) & set(own):
                given[known] = value
        with torch.device("cpu"):  # a user's code need not know of others
            made = part.call(**given, **own)
        if not isinstance(made, nn.Module):
            kind = made.__name__ if isinstance(made, type) else type(made).__name__
            raise RecipeError(f"{part.place} makes {kind}, which is no torch.nn.Module")
        if any(is_lazy(parameter) for parameter in made.parameters()):
            with torch.device("cpu"):
                _see(made, torch.zeros(1, channels, image_size, image_size))
        return made

    own = [_optional(p) for p in settable(part)]
    MODELS.add(as_member(part, build, own, ("classes", "channels", "image_size")), name)
    _PARTS[name] = part


def _optional(parameter: Parameter) -> Parameter:
    """Return a parameter, which need not be set where qtool gives it."""
    if parameter.name in (*CLASSES, *CHANNELS, *SIZE) and parameter.default is Parameter.empty:
        return parameter.replace(default=None)
    return parameter


def is_not_loaded(name: str) -> bool:
    """Tell whether a name is that of a user's network whose code did not run."""
    return is_users(name) and name not in MODELS


def _see(model: nn.Module, image: Tensor) -> object:
    """Return what a network says of an image [1, C, H, W], in inference."""
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            return model.eval()(image)
    finally:
        for module, was in training.items():
            module.training = was


def refuse_unfit(
    model: nn.Module, name: str, *, classes: int | None, channels: int, image_size: int
) -> None:
    """Pass an image of zeros through a network, and check that it gives a logit for each class.

    Args:
        model: on the CPU; neither it nor random numbers change.
        name: of it in the recipe.
        classes: of the data, None where they are not known.
        channels: of an image.
        image_size: height and width of an image, pixels.

    Raises:
        RecipeError: If it fails, or gives anything else.
    """
    part = _PARTS.get(name)
    place = name if part is None else part.place
    image = torch.zeros(1, channels, image_size, image_size)
    size = f"images [1, {channels}, {image_size}, {image_size}]"
    try:
        with torch.random.fork_rng(devices=[]):
            found = _see(model, image)
    except QtoolError:
        raise
    except Exception as error:
        why = str(part.error(error) if part is not None else error).splitlines()[0]
        hint = "model.channels and data.image_size say what they are"
        raise RecipeError(f"{why}, on {size}; {hint}") from error
    if not isinstance(found, Tensor):
        kind = type(found).__name__
        raise RecipeError(f"{place} returns {kind}; a network gives logits, a tensor")
    if found.ndim != 2 or len(found) != 1:
        shape = f"{place} returns the shape {list(found.shape)} for {size}"
        raise RecipeError(f"{shape}; a network gives logits [N, classes]")
    if classes is not None and found.shape[1] != classes:
        what = f"{place} has {found.shape[1]} outputs, and the data have {classes} classes"
        raise RecipeError(f"{what}; {_right(part)}")


def _right(part: Part | None) -> str:
    """Say how a network comes to as many outputs as there are classes."""
    accepted = {} if part is None else parameters_of(part)
    if known := next((n for n in CLASSES if n in accepted), None):
        return f"leave model.{known} to qtool, or see that the network uses it"
    if any(p.kind is Parameter.VAR_KEYWORD for p in accepted.values()):
        return "set model.num_classes, or what it calls that"
    return "let it take num_classes"
