"""What training scripts put around a state_dict: mappings that hold it, and prefixes of its names.

Sources: torchvision's references (`model`), timm (`state_dict`, `state_dict_ema`), Lightning
(`state_dict`, names under `model.`), torch.compile (`_orig_mod.`), DataParallel and
DistributedDataParallel (`module.`), torch.optim.swa_utils.AveragedModel (`module.`, `n_averaged`).
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from torch import Tensor

from qtool.errors import DataError

StateDict = OrderedDict[str, Tensor]

# where trainers put a state_dict, the likeliest first; averages of weights after the weights
HOLDERS = (
    *("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema", "params_ema", "ema_model"),
)
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # anywhere in a name
BOOKKEEPING = ("n_averaged",)  # beside the names that an AveragedModel prefixes
OF_TRAINING = ("optim", "sched", "scaler", "loss", "callback", "loop", "hyper", "args", "config")
DEEPEST = 2  # mappings around a state_dict


class Held(NamedTuple):
    """A state_dict in what a file held.

    Attributes:
        state: names and tensors.
        place: dotted, "" where the file holds nothing else.
        others: places of state_dicts that were not taken.
    """

    state: Mapping[object, object]
    place: str
    others: tuple[str, ...]


def held(loaded: object, where: str) -> Held:
    """Return the state_dict that a file holds, bare or under the names that trainers use.

    Args:
        loaded: what the file held.
        where: the file's name, for messages.

    Raises:
        DataError: If there is none, or none can be told from the others.
    """
    if not isinstance(loaded, dict) or not loaded:
        raise DataError(f"{where}: holds no state_dict, a mapping from names to tensors")
    if _is_state(loaded):
        return Held(loaded, "", ())
    found = dict(_states(loaded))
    known = [place for holder in HOLDERS for place in found if place.split(".")[0] == holder]
    if not known and len(found) > 1:
        names = ", ".join(found)
        raise DataError(
            f"{where}: holds several state_dicts, {names}; write the one that is meant with "
            "torch.save(model.state_dict(), path)"
        )
    if not found:  # what is nearest to one is told of
        nearest = next((loaded[h] for h in HOLDERS if isinstance(loaded.get(h), dict)), loaded)
        if not nearest:
            raise DataError(f"{where}: holds no state_dict, a mapping from names to tensors")
        return Held(nearest, "", ())
    place = known[0] if known else next(iter(found))
    return Held(found[place], place, tuple(other for other in found if other != place))


def _states(
    loaded: Mapping[object, object], place: str = "", depth: int = 0
) -> Iterator[tuple[str, Mapping[object, object]]]:
    """Yield the state_dicts in a mapping, with their places; those of optimizers are none."""
    for key, value in loaded.items():
        if not isinstance(key, str) or any(word in key.lower() for word in OF_TRAINING):
            continue
        inner = f"{place}.{key}".lstrip(".")
        if isinstance(value, dict) and _is_state(value):
            yield inner, value
        elif isinstance(value, dict) and depth + 1 < DEEPEST:
            yield from _states(value, inner, depth + 1)


def _is_state(value: Mapping[object, object]) -> bool:
    kept = [v for k, v in value.items() if not str(k).endswith("_extra_state")]
    return bool(kept) and all(isinstance(v, Tensor) for v in kept)


def without_wrappers(name: str) -> str:
    """Return a name without what torch puts into it: of compiled and sharded modules."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def without_bookkeeping(state: StateDict) -> StateDict:
    """Return a state_dict without the counters of an AveragedModel, whose names have a prefix."""
    own = {k: v for k, v in state.items() if not (k in BOOKKEEPING and v.numel() == 1)}
    if len(own) == len(state) or len({k.partition(".")[0] for k in own}) != 1:
        return state
    return _renamed(state, {k: k for k in own})


def without_prefix(state: StateDict, own: Collection[str] | None = None) -> tuple[StateDict, str]:
    """Return a state_dict without the prefix that all of its names have, and that prefix.

    Args:
        state: from a file.
        own: names of the network, which the rest must be among; None: there is no such prefix in
            it, and so none is left.
    """
    names = {key: key for key in state}
    prefix = ""
    while own is None or not any(name in own for name in names.values()):
        first = {name.partition(".")[0] for name in names.values()}
        rest = {key: name.partition(".")[2] for key, name in names.items()}
        if len(first) != 1 or not all(rest.values()) or not any("." in r for r in rest.values()):
            if own is not None:
                return state, ""
            break
        names, prefix = rest, f"{prefix}{first.pop()}."
    return (_renamed(state, names), prefix) if prefix else (state, "")


def _renamed(state: StateDict, names: Mapping[str, str]) -> StateDict:
    """Return the tensors that have new names, with torch's versions of their modules."""
    made: StateDict = OrderedDict(
        (names[key], value) for key, value in state.items() if key in names
    )
    prefixes = {len(key) - len(name) for key, name in names.items()}
    cut = prefixes.pop() if len(prefixes) == 1 else 0
    versions: Mapping[str, object] = vars(state).get("_metadata") or {}
    vars(made)["_metadata"] = {
        key[cut:]: version for key, version in versions.items() if len(f"{key}.") >= cut
    }
    return made
