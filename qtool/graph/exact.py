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
    groups = state["param_groups"]
    assert isinstance(groups, list)
    there, here = ([len(g["params"]) for g in some] for some in (groups, optimizer.param_groups))
    if there != here:
        raise ValueError(
            f"its optimizer trains {sum(there)} tensors, and here {sum(here)} are to be trained; "
            "if another version of qtool began it, that one can finish it"
        )
    for number, (own, given) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        for key in own.keys() & given.keys():
            if not _alike(own[key], given[key]):
                kind = type(own[key]).__name__
                raise ValueError(f"optimizer.param_groups.{number}.{key} must be a {kind}")
    optimizer.load_state_dict(dict(state))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = state["state"]
    assert isinstance(kept, dict)
    known: dict[bool, set[object]] = {}  # Adafactor keeps less of vectors than of what has sides
    for index, entries in kept.items():
        known.setdefault(parameters[index].ndim > 1, set()).update(entries)
    for index, entries in kept.items():
        parameter = parameters[index]
        if missing := known[parameter.ndim > 1] - entries.keys():
            raise ValueError(f"optimizer.state.{index} has no {', '.join(map(str, missing))}")
        for key, value in entries.items():
            name = f"optimizer.state.{index}.{key}"
            if not isinstance(value, Tensor | int | float):
                raise ValueError(f"{name} must be a tensor or a number")
            if isinstance(value, Tensor) and value.dim():  # counters of steps have no shape
                shape = list(parameter.shape)
                if key in _ONE_SIDE:
                    shape[_ONE_SIDE[key]] = 1
                _refuse_unlike(name, value, parameter.dtype, torch.Size(shape))

    if kept and isinstance(optimizer, torch.optim.SGD):
        _begin_momentum(optimizer)


_ONE_SIDE = {"row_var": -1, "col_var": -2}  # of Adafactor, and the side that each has summed up


def _begin_momentum(optimizer: torch.optim.SGD) -> None:
    """Let parameters that were in no step yet begin at a momentum of 0.

    torch does the same where none of them has any, and fails where some have.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group["momentum"] and "momentum_buffer" not in optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _alike(own: object, given: object) -> bool:
    """Tell whether two settings of an optimizer are of one type; a number may be whole or not."""
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in (own, given)]
    return all(numbers) or type(own) is type(given)


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
