"""Any float network by its name: qtool's own, torchvision's, timm's, and the user's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NotRequired, TypedDict, cast

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from qtool.errors import DataError, RecipeError
from qtool.models.architecture import (
    Architecture,
    OwnArchitecture,
    TorchvisionArchitecture,
)
from qtool.models.building import initialize_convolutions
from qtool.models.papers import MODELS
from qtool.models.published import download_weights, renamed
from qtool.models.timm_models import build_timm, is_timm, published_weights, timm_problems
from qtool.models.user_models import is_not_loaded
from qtool.models.weights import (
    StateDict,
    is_weights_file,
    load_weights,
    read_state_dict,
)
from qtool.problems import Problem, brief, did_you_mean, plain_message, shown
from qtool.settings.user_parts import is_users

RGB = 3
SMALL_IMAGE = 64  # pixels; up to here the residual networks start without a stride

Stem = Literal["auto", "small", "standard"]


@dataclass(frozen=True)
class Built:
    """A float network.

    Attributes:
        model: the network, on the CPU.
        note: a line for the user about how it was built, or "".
        architecture: from which `rebuild_model` makes the same network again, with other weights.
    """

    model: nn.Module
    note: str
    architecture: Architecture


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
        return [("", f"unknown model {shown(name)}{did_you_mean(name, model_names())}")]
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
    state = _read_weights(name, weights, channels)
    architecture: Architecture
    if name in MODELS or says_channels(name):
        given = dict(params) if says_channels(name) else own
        architecture = OwnArchitecture(
            classes=classes, image_size=image_size, channels=channels, params=given
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
    note = "" if state is None else load_weights(model, state, weights)
    return Built(model, note, architecture)


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
    model = _from_torchvision(name, **published)
    _check_output(model, name, published["classes"], published["image_size"])
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


class _Arguments(TypedDict):
    """Of torchvision's builders; which of them a builder takes depends on the network."""

    num_classes: int
    aux_logits: NotRequired[bool]
    init_weights: NotRequired[bool]
    transform_input: NotRequired[bool]
    image_size: NotRequired[int]
    input_size: NotRequired[tuple[int, int]]


def _from_torchvision(
    name: str, classes: int, image_size: int, *, small_stem: bool, published_input: bool
) -> nn.Module:
    from torchvision import models

    arguments = _Arguments(num_classes=classes)
    if name in ("googlenet", "inception_v3"):
        # The published weights expect inputs scaled as in the papers, hence transform_input.
        arguments["aux_logits"] = False
        arguments["init_weights"] = not published_input
        arguments["transform_input"] = published_input
    elif name.startswith("vit_"):
        arguments["image_size"] = image_size
    elif name.startswith("maxvit"):
        arguments["input_size"] = (image_size, image_size)
    try:
        model = models.get_model(name, weights=None, **arguments)
    except (AssertionError, ValueError) as error:
        raise _wrong_size(name, image_size, error) from error
    if small_stem:
        _shrink_stem(model)
    return model


def _shrink_stem(model: nn.Module) -> None:
    """Replace a 7x7 stride-2 convolution and a pooling, which would leave little of 32 pixels.

    Reference: He et al., 2015, arXiv:1512.03385, section 4.2, begins so on CIFAR-10.
    """
    old = model.get_parameter("conv1.weight")  # [out_channels, 3, 7, 7]
    conv = nn.Conv2d(RGB, len(old), kernel_size=3, padding=1, bias=False)
    initialize_convolutions(conv)
    model.conv1 = conv
    model.maxpool = nn.Identity()


def _wants_small_stem(stem: object, image_size: int, state: StateDict | None) -> bool:
    if stem != "auto":
        return stem == "small"
    if state is None:
        return image_size <= SMALL_IMAGE
    return "conv1.weight" in state and state["conv1.weight"].shape[-1] == 3


def _check_output(model: nn.Module, name: str, classes: int, image_size: int) -> None:
    """Run the model once without numbers, on the meta device: some need larger images."""
    images = torch.zeros(1, RGB, image_size, image_size, device="meta")
    shapes = {key: value.to("meta") for key, value in model.state_dict().items()}
    model.eval()
    try:
        with torch.no_grad():
            logits = torch.func.functional_call(model, shapes, (images,))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _wrong_size(name, image_size, error) from error
    finally:
        model.train()
    assert logits.shape == (1, classes)


def _wrong_size(name: str, image_size: int, error: Exception) -> RecipeError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return RecipeError(
        f"{name} does not take images of {image_size} pixels ({reason[0]}); set data.image_size, "
        "224 for most"
    )


def _read_weights(name: str, weights: str, channels: int) -> StateDict | None:
    if weights == "none":
        return None
    if is_timm(name) and not is_weights_file(weights):
        return published_weights(name, channels)
    if is_weights_file(weights):
        state = read_state_dict(Path(weights).expanduser())
    else:
        state = download_weights(name, weights)
    return renamed(name, state)
