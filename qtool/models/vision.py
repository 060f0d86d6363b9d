"""Any float network by its name: qtool's own, torchvision's, timm's, and the user's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from pydantic import TypeAdapter, ValidationError
from torch import nn

from qtool.errors import DataError, RecipeError
from qtool.models.architecture import (
    Architecture,
    OwnArchitecture,
    TorchvisionArchitecture,
)
from qtool.models.checkpoints import StateDict, without_prefix
from qtool.models.papers import MODELS
from qtool.models.published import (
    RGB,
    build_published,
    download_weights,
    refuse_other_outputs,
    renamed,
)
from qtool.models.timm_models import build_timm, is_timm, published_weights, timm_problems
from qtool.models.user_models import is_not_loaded
from qtool.models.weights import (
    is_weights_file,
    load_weights,
    read_weights,
)
from qtool.problems import Problem, brief, did_you_mean, plain_message, shown, unknown
from qtool.settings.user_parts import is_users

SMALL_IMAGE = 64  # pixels; up to here the residual networks start without a stride

Stem = Literal["auto", "small", "standard"]


@dataclass(frozen=True)
class Built:
    """A float network.

    Attributes:
        model: the network, on the CPU.
        note: a line for the user about how it was built, or "".
        architecture: from which `rebuild_model` makes the same network again, with other weights.
        fresh_head: weights were given whose head is for other classes, so that it starts anew.
    """

    model: nn.Module
    note: str
    architecture: Architecture
    fresh_head: bool = False


def model_names() -> list[str]:
    """Return every name without a colon that a recipe may use: qtool's own, then torchvision's."""
    from torchvision import models  # here and below, as loading it takes seconds

    own = [name for name in MODELS.names() if not is_users(name)]
    return own + models.list_models(module=models)


def input_channels(name: str) -> int | None:
    """Return how many channels images must have; None where those of the data, or of the recipe."""
    return None if name in MODELS or says_channels(name) else RGB


def says_channels(name: str) -> bool:
    """Tell whether a recipe says how many channels the images of a network have, RGB if nothing."""
    return is_users(name) or is_timm(name)


def model_problems(name: str, params: Mapping[str, object]) -> list[Problem]:
    """Return every (parameter, what is wrong with it); `""` stands for the name itself.

    Args:
        name: The model's name in the recipe.
        params: Its other keys in the recipe; `weights` is checked where it is among them. Nothing
            is built, opened or downloaded.
    """
    if says_channels(name):
        weights = params.get("weights", "none")
        problem = _weights_problem(name, weights)
        others = {key: value for key, value in params.items() if key != "weights"}
        found = [("weights", problem)] if problem else []
        if is_timm(name):
            return found + timm_problems(name, others)
        return found if is_not_loaded(name) else found + MODELS.problems(name, others)
    if name not in MODELS and name not in model_names():
        return [("", unknown("model", name, model_names()))]
    weights = params.get("weights", "none")
    problem = _weights_problem(name, weights)
    found = [("weights", problem)] if problem else []
    others = {key: value for key, value in params.items() if key != "weights"}
    if name in MODELS:
        return found + MODELS.problems(name, others)
    for key, value in others.items():
        if key != "stem" or not _is_residual(name):
            accepted = did_you_mean(key, ["stem"]) if _is_residual(name) else "; it takes none"
            found.append((key, f"{name} has no parameter {brief(key)}{accepted}"))
        elif problem := _stem_problem(value, weights):
            found.append((key, problem))
    return found


def build_model(
    name: str,
    classes: int,
    channels: int,
    image_size: int,
    /,
    *,
    weights: str = "none",
    **params: object,
) -> Built:
    """Build a float network that turns images, [N, channels, H, W], into logits, [N, classes].

    Args:
        name: One of `model_names()`, timm:NAME, or the user's, loaded.
        classes: Number of logits.
        channels: Of the images; `input_channels` says what the model needs.
        image_size: Height and width of the images, pixels.
        weights: none, a set torchvision publishes (IMAGENET1K_V1, DEFAULT), or the path of a
            state_dict.
        **params: Recipe parameters of qtool's own models; `stem` of torchvision's residual
            networks. small: 3x3, no stride, no pooling. auto, the default: small for images of up
            to 64 pixels without weights, else as the weights have it.

    Raises:
        RecipeError: If the name, a parameter or the image size is wrong.
        DataError: If the weights cannot be had or do not fit.
    """
    stem = params.get("stem", "auto")
    own = {key: value for key, value in params.items() if key != "stem"}
    chosen = own | ({} if stem == "auto" else {"stem": stem})
    if found := model_problems(name, params if says_channels(name) else chosen):
        raise RecipeError("; ".join(f"{key}: {why}" if key else why for key, why in found))
    if problem := _weights_problem(name, weights):
        raise DataError(f"model.weights: {problem}")
    if stem != "auto" and (problem := _stem_problem(stem, weights)):
        raise RecipeError(f"stem: {problem}")
    state, notes = _read_weights(name, weights, channels)
    architecture: Architecture
    if name in MODELS or says_channels(name):
        kept = dict(params) if says_channels(name) else own
        architecture = OwnArchitecture(
            classes=classes, image_size=image_size, channels=channels, params=kept
        )
    else:
        if channels != RGB:
            raise ValueError(f"{name} takes {RGB} channels, got {channels}")
        architecture = TorchvisionArchitecture(
            classes=classes,
            image_size=image_size,
            small_stem=_is_residual(name) and _wants_small_stem(stem, image_size, state),
            published_input=state is not None,
        )
    model = rebuild_model(name, architecture)
    of_head = ""
    if state is not None:
        if says_channels(name):
            state, prefix = without_prefix(state, model.state_dict())
            notes = (*notes, *_said_of(prefix, weights))
        of_head = load_weights(model, state, weights)
        notes = (*notes, of_head)
    return Built(model, "\nnote: ".join(filter(None, notes)), architecture, bool(of_head))


def rebuild_model(name: str, architecture: Mapping[str, object]) -> nn.Module:
    """Return a network with fresh weights, from its name and `Built.architecture`.

    Args:
        name: As in `build_model`.
        architecture: An Architecture, which may come from a file: what is missing or wrong in it
            raises what Python raises.

    Raises:
        RecipeError: If it does not take images of that size, or is the user's and did not run.
    """
    if is_not_loaded(name):
        raise RecipeError(f"{name}: its code did not run, so there is no network")
    if is_timm(name):
        of_timm = cast(OwnArchitecture, architecture)
        return build_timm(name, of_timm["classes"], of_timm["channels"], of_timm["params"])
    if name in MODELS:
        own = cast(OwnArchitecture, architecture)
        sizes = own["classes"], own["channels"], own["image_size"]
        return MODELS.build(name, **own["params"])(*sizes)
    published = cast(TorchvisionArchitecture, architecture)
    model = build_published(name, **published)
    refuse_other_outputs(model, name, published["classes"], published["image_size"])
    return model


def _is_residual(name: str) -> bool:
    return name.startswith(("resnet", "resnext", "wide_resnet"))


def _stem_problem(stem: object, weights: object) -> str:
    try:
        TypeAdapter(Stem).validate_python(stem, strict=True)
    except ValidationError as error:
        return plain_message(error.errors()[0])
    published = isinstance(weights, str) and weights != "none" and not is_weights_file(weights)
    if stem == "small" and published:
        return f"the weights {weights} have the standard stem; leave stem out or set it to standard"
    return ""


def _weights_problem(name: str, weights: object) -> str:
    if not isinstance(weights, str):
        return f"{shown(weights)} is not text"
    if weights == "none" or is_weights_file(weights) or (weights == "DEFAULT" and is_timm(name)):
        return ""
    if is_timm(name):
        return f"{name} has no weights {shown(weights)}; set DEFAULT, none or the path of a file"
    if name in MODELS or is_users(name):
        return f"{name} has no published weights; set none or the path of a state_dict"
    from torchvision import models

    known = ["none", "DEFAULT", *models.get_model_weights(name).__members__]
    known = list(dict.fromkeys(known))
    if weights in known:
        return ""
    return (
        f"{name} has no weights {shown(weights)}{did_you_mean(weights.upper(), known)}"
        " (a path has a / or ends in .pt, .pth, .th, .bin or .safetensors)"
    )


def _wants_small_stem(stem: object, image_size: int, state: StateDict | None) -> bool:
    if stem != "auto":
        return stem == "small"
    if state is None:
        return image_size <= SMALL_IMAGE
    return "conv1.weight" in state and state["conv1.weight"].shape[-1] == 3


def _read_weights(
    name: str, weights: str, channels: int
) -> tuple[StateDict | None, tuple[str, ...]]:
    """Return the weights that a recipe names, None where it names none, and notes on them."""
    if weights == "none":
        return None, ()
    if not is_weights_file(weights):
        if is_timm(name):
            return published_weights(name, channels), ()
        return renamed(name, download_weights(name, weights)), ()
    given = read_weights(Path(weights).expanduser())
    if says_channels(name):  # whose names may have a prefix themselves
        return given
    state, prefix = without_prefix(given.state)
    return renamed(name, state), (*given.notes, *_said_of(prefix, weights))


def _said_of(prefix: str, where: str) -> list[str]:
    return [f"{where}: all names begin with {prefix}, which is left out"] if prefix else []
