"""Weights from files: a state_dict, read safely and put into a model, every difference reported.

What training scripts put around it is in `qtool.models.checkpoints`. The checkpoint.pt of a run
serves too: its float and latent weights, without its quantizers.
"""

import re
import warnings
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qtool.errors import DamagedFileError, DataError
from qtool.files.checksums import NewestAndPrevious
from qtool.models.checkpoints import (
    StateDict,
    held,
    without_bookkeeping,
    without_prefix,
    without_wrappers,
)
from qtool.tensor_files import read_safetensors, read_torch

SUFFIXES = (".pt", ".pth", ".th", ".safetensors", ".bin", ".ckpt", ".tar")
SHOWN = 3  # keys listed in a message


class Given(NamedTuple):
    """Weights from a file or an address.

    Attributes:
        state: names and tensors.
        notes: for the user, on what was taken of it.
    """

    state: StateDict
    notes: tuple[str, ...] = ()


def is_weights_file(weights: str) -> bool:
    """Return whether `weights` of a recipe names a file, not a set of published weights."""
    return "/" in weights or weights.endswith(SUFFIXES)


def read_state_dict(path: Path) -> StateDict:
    """Return the state_dict in a file, without a prefix that all of its names have.

    Raises:
        DataError: As `read_weights`.
    """
    return without_prefix(read_weights(path).state)[0]


def read_weights(path: Path) -> Given:
    """Read a state_dict from `path`: bare, or as training scripts write it.

    Raises:
        DataError: If the file is missing, damaged, unsafe to load or holds no state_dict.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; model.weights names a file of weights")
    if path.is_dir():
        raise DataError(
            f"{path}: is a folder; model.weights names a file, such as checkpoint.pt of a run"
        )
    if not path.stat().st_size:
        raise DataError(f"{path}: is empty; model.weights names a file of weights")
    return plain_state_dict(_load(path), str(path))


def _load(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        with warnings.catch_warnings():
            # torch warns about archives of TorchScript before it refuses them.
            warnings.simplefilter("ignore")
            pair = NewestAndPrevious.of(path)
            if not pair.digests.is_file():
                with path.open("rb") as file:
                    return read_torch(file, allowed=[Namespace])
            with pair.opened(path) as (file, _):  # a run's checkpoint
                return read_torch(file)
    except DamagedFileError as error:
        raise DataError(f"{error}; restore it, or go on with the run that it is of") from error
    # A damaged or hostile file can make the readers fail with any error there is.
    except Exception as error:
        raise DataError(_why_not(path, error)) from error


def _why_not(path: Path, error: Exception) -> str:
    """Say what of a file is not loaded, as far as torch tells."""
    found = (
        re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, UnpicklingError) else None
    )
    what = "is damaged, or holds more than tensors"
    if found is not None:
        what = f"holds {found[1]}, and not tensors and plain data alone,"
    safe = "write it with torch.save(model.state_dict(), path)"
    return f"{path}: {what} and so is not safe to load; {safe}"


def plain_state_dict(loaded: object, where: str) -> Given:
    """Find the tensors in what a file held, without the mappings training scripts put around them.

    Args:
        loaded: What the file held.
        where: The file's name, for messages.

    Raises:
        DataError: If there is no state_dict, or it holds more than finite tensors.
    """
    notes: tuple[str, ...] = ()
    source: object = loaded
    inner: Mapping[object, object]
    if isinstance(loaded, dict) and _is_checkpoint(loaded):
        own = _float_part(_judged(loaded["model"], loaded.get("average")))
        inner = own if isinstance(own, dict) else {}
        if not inner:
            raise DataError(f"{where}: holds no state_dict, a mapping from names to tensors")
    else:
        found = held(loaded, where)
        source = found.state
        inner = {k: v for k, v in found.state.items() if not str(k).endswith("_extra_state")}
        if found.others:
            notes = (f"{where}: {found.place} is taken, not {', '.join(found.others)}",)
    if wrong := [key for key, value in inner.items() if not _is_dense(value)]:
        raise DataError(
            f"{where}: is not a state_dict: no plain tensor under {_few(wrong)}; "
            "put the model's state_dict in the file, bare or under 'state_dict'"
        )
    tensors = {str(key): value for key, value in inner.items() if isinstance(value, Tensor)}
    if bad := [key for key, value in tensors.items() if not bool(torch.isfinite(value).all())]:
        raise DataError(f"{where}: has values that are not finite, in {_few(bad)}")
    state = OrderedDict((without_wrappers(key), value) for key, value in tensors.items())
    vars(state)["_metadata"] = {
        without_wrappers(key): version
        for key, version in (getattr(source, "_metadata", None) or {}).items()
    }
    return Given(without_bookkeeping(state), notes)


def _is_checkpoint(loaded: Mapping[str, object]) -> bool:
    """Tell whether a file is the checkpoint.pt of one of qtool's runs."""
    return all(key in loaded for key in ("format", "model", "architecture"))


def _judged(state: object, average: object) -> object:
    """Return a run's weights as they are judged: their average, where there is one."""
    if isinstance(state, dict) and isinstance(average, dict):
        return {**state, **average}
    return state


def _float_part(state: object) -> object:
    """Return a run's latent weights and batch norms, without the state of its quantizers."""
    if not isinstance(state, dict):
        return state
    quantizers = {"weight_quantizer", "input_quantizer", "quantizers", "sites"}
    return {k: v for k, v in state.items() if not quantizers & set(str(k).split("."))}


def _is_dense(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def load_weights(model: nn.Module, state: StateDict, where: str) -> str:
    """Put `state` into `model`; a head for other classes stays as it is.

    Args:
        model: Is changed in place, unless the weights do not fit.
        state: Its state_dict, from `where`.
        where: A file's name or an address, for messages.

    Returns:
        A line for the user about the head, or "".

    Raises:
        DataError: If anything but the head differs.
    """
    own = model.state_dict()
    head = head_name(model)
    note = ""
    if _is_for_other_classes(own, state, head):
        given, wanted = len(state[f"{head}.weight"]), len(own[f"{head}.weight"])
        note = (
            f"{where}: its head {head} has {given} classes and the data {wanted}, "
            "so the head starts fresh"
        )
        state.update({k: own[k] for k in (f"{head}.weight", f"{head}.bias") if k in own})
    _refuse_differences(own, state, where)
    # mnasnet demands a version of itself, which safetensors and bare dicts do not carry.
    versions = vars(state).setdefault("_metadata", {})
    versions.setdefault("", vars(own)["_metadata"][""])
    # What may be missing are counters only: everything else was compared above.
    model.load_state_dict(state, strict=False)
    return note


def head_name(model: nn.Module) -> str:
    """Return the name of the layer that gives the logits: the last one with weights, "" if none."""
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return layers[-1] if layers else ""


def _is_for_other_classes(own: dict[str, Tensor], state: StateDict, head: str) -> bool:
    key = f"{head}.weight"
    if key not in state or state[key].ndim != own[key].ndim:
        return False
    return state[key].shape != own[key].shape and state[key].shape[1:] == own[key].shape[1:]


def _refuse_differences(own: dict[str, Tensor], state: StateDict, where: str) -> None:
    # Files from before batch norm counted its batches have no such counters.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    reshaped = [
        f"{key} {list(state[key].shape)} (the model's: {list(own[key].shape)})"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    parts = [
        f"{len(keys)} {kind}: {', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''}"
        for kind, keys in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
        )
        if keys
    ]
    if parts:
        raise DataError("\n  ".join([f"{where}: does not fit the model", *parts]))


def _few(keys: Sequence[object]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(str(key) for key in keys[:SHOWN]) + more
