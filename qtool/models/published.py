"""torchvision's networks, and the weights it publishes, with the keys that they have today."""

import re
import socket
import warnings
from collections import OrderedDict
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import NotRequired, TypedDict
from urllib.request import Request, urlopen

import torch
from torch import nn

from qtool.errors import DataError, RecipeError
from qtool.models.building import initialize_convolutions
from qtool.models.checkpoints import StateDict
from qtool.models.weights import plain_state_dict

RGB = 3
DOWNLOAD_TIMEOUT = 15  # seconds without an answer before a download is given up
ANSWER_TIMEOUT = 5  # seconds, where only whether there is an answer is asked


def download_weights(name: str, weights: str) -> StateDict:
    """Return weights that torchvision publishes, from the network or torch's cache.

    Raises:
        DataError: If they cannot be had.
    """
    from torchvision import models  # here, as loading it takes seconds

    published = models.get_model_weights(name)[weights]
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
    return plain_state_dict(loaded, published.url).state


def can_be_had(name: str, weights: str) -> bool:
    """Tell whether published weights are in torch's cache, or their server answers in time."""
    from torchvision import models  # here, as loading it takes seconds

    published = models.get_model_weights(name)[weights]
    if (Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name).is_file():
        return True
    asked = Request(published.url, method="HEAD")
    try:
        with urlopen(asked, timeout=ANSWER_TIMEOUT) as answer:
            return answer.status == HTTPStatus.OK
    except (OSError, HTTPException, ValueError):  # no network, a proxy that refuses, no answer
        return False


def renamed(name: str, state: StateDict) -> StateDict:
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


class _Arguments(TypedDict):
    """Of torchvision's builders; which of them a builder takes depends on the network."""

    num_classes: int
    aux_logits: NotRequired[bool]
    init_weights: NotRequired[bool]
    transform_input: NotRequired[bool]
    image_size: NotRequired[int]
    input_size: NotRequired[tuple[int, int]]


def build_published(
    name: str, classes: int, image_size: int, *, small_stem: bool, published_input: bool
) -> nn.Module:
    """Return a network of torchvision's with fresh weights.

    Args:
        name: torchvision's.
        classes: number of logits.
        image_size: height and width of images, pixels.
        small_stem: begin with a 3x3 convolution, without stride and pooling.
        published_input: take inputs scaled as published weights expect.

    Raises:
        RecipeError: If it does not take images of that size.
    """
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


def refuse_other_outputs(model: nn.Module, name: str, classes: int, image_size: int) -> None:
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
