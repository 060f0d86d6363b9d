"""What a file holds, loaded into what it is for: the same types and shapes, every number finite."""

import hashlib
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def load_model(model: nn.Module, state: Mapping[str, object]) -> None:
    """Put a state into a model, in place; nothing is cast on the way.

    What is not finite in a model that was just made may be so in the state, as masks are.

    Raises:
        RuntimeError: If names or shapes are others, as torch says it.
        ValueError: If something has another type or shape, or is not finite; names it.
    """
    open_ended = {key for key, tensor in _tensors(model).items() if not _is_finite(tensor)}
    if where := not_finite({k: v for k, v in state.items() if k not in open_ended}):
        raise ValueError(f"{where} is not finite")
    model.load_state_dict(dict(state))
    own = _tensors(model)
    for name, given in state.items():
        if isinstance(given, Tensor) and name in own:
            _refuse_unlike(name, given, own[name].dtype, own[name].shape)


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, object]) -> None:
    """Put a state into an optimizer, in place.

    Raises:
        ValueError: If parameters are others, or something has another type or shape than its
            parameter, or is not finite; names it.
    """
    if where := not_finite(state):
        raise ValueError(f"optimizer.{where} is not finite")
    optimizer.load_state_dict(dict(state))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = state["state"]
    assert isinstance(kept, dict)
    for index, entries in kept.items():
        parameter = parameters[index]
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.dim():  # counters of steps have no shape
                name = f"optimizer.state.{index}.{key}"
                _refuse_unlike(name, value, parameter.dtype, parameter.shape)


def sha256_of_state(state: Mapping[str, object]) -> str:
    """Return the SHA-256 of a state's tensors: names, types, shapes and numbers, in any order."""
    digest = hashlib.sha256()
    for name, tensor in sorted((k, v) for k, v in state.items() if isinstance(v, Tensor)):
        digest.update(f"{name} {_kind(tensor.dtype)} {list(tensor.shape)}\n".encode())
        digest.update(sha256_of_numbers(tensor).encode())
    return digest.hexdigest()


def sha256_of_numbers(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's numbers as they lie in memory, in C order."""
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()


def not_finite(value: object, place: str = "") -> str:
    """Return where in plain data, its lists, dicts and tensors, a number is not finite; "" if none.

    Args:
        value: the data.
        place: where it stands, for the answer.
    """
    if isinstance(value, Tensor):
        return "" if _is_finite(value) else place
    if isinstance(value, float):
        return "" if math.isfinite(value) else place
    inner: list[tuple[object, object]] = []
    if isinstance(value, Mapping):
        inner = list(value.items())
    elif isinstance(value, (list, tuple)):
        inner = list(enumerate(value))
    found = (not_finite(part, f"{place}.{key}".lstrip(".")) for key, part in inner)
    return next((where for where in found if where), "")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _refuse_unlike(name: str, given: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    if given.dtype != dtype or given.shape != shape:
        said = f"{_kind(given.dtype)} {list(given.shape)}"
        raise ValueError(f"{name} is {said}, and must be {_kind(dtype)} {list(shape)}")


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
