"""Any float network by its name: qtool's own and torchvision's classification models."""

import re
import socket
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn
from torchvision import models

from qtool.errors import DataError, RecipeError
from qtool.models.building import initialize_convolutions
from qtool.models.papers import MODELS
from qtool.models.weights import (
    StateDict,
    is_weights_file,
    load_weights,
    plain_state_dict,
    read_state_dict,
)
from qtool.problems import did_you_mean, plain_message

RGB = 3
SMALL_IMAGE = 64  # pixels; up to here the residual networks start without a stride
DOWNLOAD_TIMEOUT = 15  # seconds without an answer before a download is given up

Stem = Literal["auto", "small", "standard"]


@dataclass(frozen=True)
class Built:
    """A float network.

    Attributes:
        model: the network, on the CPU.
        note: a line for the user about how it was built, or "".
        architecture: plain data from which `rebuild_model` makes the same network again, with
            other weights.
    """

    model: nn.Module
    note: str
    architecture: dict[str, Any]


def model_names() -> list[str]:
    """Return every name a recipe may use: qtool's own first, then torchvision's."""
    return MODELS.names() + models.list_models(module=models)


def input_channels(name: str) -> int | None:
    """Return how many channels the images must have, or None where the model takes any number."""
    return None if name in MODELS else RGB


def model_problems(name: str, params: dict[str, Any]) -> list[tuple[str, str]]:
    """Return every (parameter, what is wrong with it); `""` stands for the name itself.

    Args:
        name: The model's name in the recipe.
        params: Its other keys in the recipe; `weights` is checked where it is among them. Nothing
            is built, opened or downloaded.
    """
    if name not in model_names():
        return [("", f"unknown model {name!r}{did_you_mean(name, model_names())}")]
    weights = params.get("weights", "none")
    problem = _weights_problem(name, weights)
    found = [("weights", problem)] if problem else []
    others = {key: value for key, value in params.items() if key != "weights"}
    if name in MODELS:
        return found + MODELS.problems(name, others)
    for key, value in others.items():
        if key != "stem" or not _is_residual(name):
            accepted = did_you_mean(key, ["stem"]) if _is_residual(name) else "; it takes none"
            found.append((key, f"{name} has no parameter {key}{accepted}"))
        elif problem := _stem_problem(value, weights):
            found.append((key, problem))
    return found


def build_model(
    name: str,
    classes: int,
    channels: int,
    image_size: int,
    *,
    weights: str = "none",
    stem: str = "auto",
    **params: Any,
) -> Built:
    """Build a float network that turns images, [N, channels, H, W], into logits, [N, classes].

    Args:
        name: One of `model_names()`.
        classes: Number of logits.
        channels: Of the images; `input_channels` says what the model needs.
        image_size: Height and width of the images, pixels.
        weights: none, a set torchvision publishes (IMAGENET1K_V1, DEFAULT), or the path of a
            state_dict.
        stem: Of torchvision's residual networks. small: 3x3, no stride, no pooling. auto: small
            for images of up to 64 pixels without weights, else as the weights have it.
        **params: Recipe parameters of qtool's own models.

    Raises:
        RecipeError: If the name, a parameter or the image size is wrong.
        DataError: If the weights cannot be had or do not fit.
    """
    chosen = params | ({} if stem == "auto" else {"stem": stem})
    if found := model_problems(name, chosen):
        raise RecipeError("; ".join(f"{key}: {why}" if key else why for key, why in found))
    if problem := _weights_problem(name, weights):
        raise DataError(f"model.weights: {problem}")
    if stem != "auto" and (problem := _stem_problem(stem, weights)):
        raise RecipeError(f"stem: {problem}")
    state = _read_weights(name, weights)
    architecture: dict[str, Any] = {"classes": classes, "image_size": image_size}
    if name in MODELS:
        architecture |= {"channels": channels, "params": params}
    else:
        if channels != RGB:
            raise ValueError(f"{name} takes {RGB} channels, got {channels}")
        small = _is_residual(name) and _wants_small_stem(stem, image_size, state)
        architecture |= {"small_stem": small, "published_input": state is not None}
    model = rebuild_model(name, architecture)
    note = "" if state is None else load_weights(model, state, weights)
    return Built(model, note, architecture)


def rebuild_model(name: str, architecture: dict[str, Any]) -> nn.Module:
    """Return a network with fresh weights, from its name and `Built.architecture`.

    Raises:
        RecipeError: If it does not take images of that size.
    """
    if name in MODELS:
        sizes = [architecture[key] for key in ("classes", "channels", "image_size")]
        return MODELS.build(name, **architecture["params"])(*sizes)
    model = _from_torchvision(name, **architecture)
    _check_output(model, name, architecture["classes"], architecture["image_size"])
    return model


def _is_residual(name: str) -> bool:
    return name.startswith(("resnet", "resnext", "wide_resnet"))


def _stem_problem(stem: Any, weights: Any) -> str:
    try:
        TypeAdapter(Stem).validate_python(stem, strict=True)
    except ValidationError as error:
        return plain_message(error.errors()[0])
    published = isinstance(weights, str) and weights != "none" and not is_weights_file(weights)
    if stem == "small" and published:
        return f"the weights {weights} have the standard stem; leave stem out or set it to standard"
    return ""


def _weights_problem(name: str, weights: Any) -> str:
    if not isinstance(weights, str):
        return f"{weights!r} is not text"
    if weights == "none" or is_weights_file(weights):
        return ""
    if name in MODELS:
        return f"{name} has no published weights; set none or the path of a state_dict"
    known = ["none", "DEFAULT", *models.get_model_weights(name).__members__]
    known = list(dict.fromkeys(known))
    if weights in known:
        return ""
    return (
        f"{name} has no weights {weights!r}{did_you_mean(weights.upper(), known)}"
        " (a path has a / or ends in .pt, .pth, .th, .bin or .safetensors)"
    )


def _from_torchvision(
    name: str, classes: int, image_size: int, *, small_stem: bool, published_input: bool
) -> nn.Module:
    arguments: dict[str, Any] = {"num_classes": classes}
    if name in ("googlenet", "inception_v3"):
        # The published weights expect inputs scaled as in the papers, hence transform_input.
        arguments |= {
            "aux_logits": False,
            "init_weights": not published_input,
            "transform_input": published_input,
        }
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
    old: Any = model.conv1
    conv = nn.Conv2d(RGB, old.out_channels, kernel_size=3, padding=1, bias=False)
    initialize_convolutions(conv)
    model.conv1 = conv
    model.maxpool = nn.Identity()


def _wants_small_stem(stem: str, image_size: int, state: StateDict | None) -> bool:
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


def _read_weights(name: str, weights: str) -> StateDict | None:
    if weights == "none":
        return None
    if is_weights_file(weights):
        state = read_state_dict(Path(weights).expanduser())
    else:
        state = _download(name, weights)
    return _renamed(name, state)


def _download(name: str, weights: str) -> StateDict:
    published: Any = models.get_model_weights(name)[weights]
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    # The network, the disk and a damaged file in the cache each fail with errors of their own.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            f"{name}: the weights {weights} could not be had from {published.url} ({reason[0]}); "
            f"put that file at {kept}, or set model.weights to the path of a state_dict"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return plain_state_dict(loaded, published.url)


def _renamed(name: str, state: StateDict) -> StateDict:
    """Bring the keys of torchvision's published files to those of its models.

    DenseNet's are from before names lost a dot (norm.1 is now norm1); GoogLeNet's and Inception's
    hold auxiliary heads, which only their training used.
    """
    renamed: StateDict = OrderedDict()
    for key, value in state.items():
        if name in ("googlenet", "inception_v3") and key.startswith(
            ("aux1.", "aux2.", "AuxLogits.")
        ):
            continue
        if name.startswith("densenet"):
            key = re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", key)
        renamed[key] = value
    vars(renamed).update(vars(state))
    return renamed
