"""The weights that torchvision publishes: downloaded, with the keys that its models have today."""

import re
import socket
import warnings
from collections import OrderedDict
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import torch

from qtool.errors import DataError
from qtool.models.weights import StateDict, plain_state_dict

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
    return plain_state_dict(loaded, published.url)


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
