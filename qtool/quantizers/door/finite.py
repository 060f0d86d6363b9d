"""Numbers that no computation survives: infinities, NaNs, negative variances, scales of zero.

They are looked for where they come in: in a model before its first step and after each epoch, and
in the values that set ranges. A device is waited for once in each look.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from qtool.errors import ModelError
from qtool.quantizers.fake_quantize import FakeQuantize

MOST_LISTED = 5  # of a message: one bad layer soon makes the next one bad
Demand = Literal["finite", "not negative", "positive", "not 0"]
MEND = "give weights, statistics and scales to compute with"


def refuse_bad_numbers(model: nn.Module) -> None:
    """Check that every weight, bias, statistic and scale of a model is a number to compute with.

    Raises:
        ModelError: Lists each tensor that is not, by its name; a ValueError, too.
    """
    found = bad_numbers(model)
    if found:
        raise ModelError(f"{listed(found)}; {MEND}")


def listed(found: list[str]) -> str:
    """Return faults in one line, the first few of them."""
    more = f", and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
    return f"{'; '.join(found[:MOST_LISTED])}{more}"


def bad_numbers(model: nn.Module) -> list[str]:
    """Return what is wrong with a model's parameters and buffers, a line for each tensor.

    Looked at are floating-point tensors that have values, in the order of the model's modules: for
    infinities and NaNs, running variances for negative values, and scales for 0. A learned scale
    may stand below 0 after its last update, where it counts as the smallest one that there is, and
    buffers that are no statistics may hold -inf, as masks of attention do.
    """
    named = list(_with_values(model))
    sound = _each([_is_sound(tensor, demand) for _, tensor, demand in named])
    bad = [entry for entry, good in zip(named, sound, strict=True) if not good]
    return [f"{name} {_fault(tensor, demand)}" for name, tensor, demand in bad]


def refuse_bad_state(model: nn.Module, incompatible_keys: object) -> None:
    """Do what `refuse_bad_numbers` does after a state has been loaded: a hook of torch's."""
    del incompatible_keys
    refuse_bad_numbers(model)


def refuse_bad_values(values: object, what: str) -> None:
    """Check that every tensor in nested tuples, lists and dicts holds finite values.

    Args:
        values: of an example, or of a batch; tensors that are not floating-point pass, and so do
            masks that are added, of zeros and -inf.
        what: they are, such as "the example", for the message.

    Raises:
        ModelError: Says how many values are not finite; a ValueError, too.
    """
    for leaf in tree_leaves(values):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or leaf.is_meta:
            continue
        if not torch.isfinite(leaf).all() and not _is_added_mask(leaf):
            raise ModelError(f"{what} {not_finite(leaf)}; give values that are finite")


def _is_added_mask(tensor: Tensor) -> bool:
    """Tell whether a tensor holds zeros and -inf alone, as what is added to attention scores."""
    zero = tensor == 0
    return bool((zero | (tensor == -torch.inf)).all() and zero.any())


def not_finite(tensor: Tensor) -> str:
    """Say what a tensor with values that are not finite holds, and how many there are."""
    finite = torch.isfinite(tensor)
    kind = "nan" if torch.isnan(tensor).any() else "inf"
    count = tensor.numel()
    if count == 1:
        return f"is {float(tensor)}"
    return f"holds {kind} ({count - int(finite.sum())} of {count} values are not finite)"


def _with_values(model: nn.Module) -> Iterator[tuple[str, Tensor, Demand]]:
    """Yield each tensor of the model once: name, tensor, and what is demanded of it."""
    seen: set[int] = set()
    for owner, module in model.named_modules():
        tensors = [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]
        for name, tensor in tensors:
            if id(tensor) in seen or not tensor.is_floating_point() or tensor.is_meta:
                continue
            seen.add(id(tensor))
            if is_lazy(tensor) or not tensor.numel():
                continue
            if _may_mask(module, name):
                tensor = torch.where(tensor == -torch.inf, 0.0, tensor)
            demand: Demand = "not negative" if name == "running_var" else "finite"
            if isinstance(module, FakeQuantize) and name == "scale":
                demand = "not 0" if module.learns else "positive"
            yield f"{owner}.{name}".lstrip("."), tensor.detach(), demand


def _may_mask(module: nn.Module, name: str) -> bool:
    """Tell whether a tensor is a buffer that neither a norm nor a quantizer computes with."""
    if isinstance(module, FakeQuantize) or "running_var" in module._buffers:
        return False
    return name in module._buffers


def _is_sound(tensor: Tensor, demand: Demand) -> Tensor:
    """Return whether all values are finite and as demanded, bool []."""
    sound = torch.isfinite(tensor)
    if demand == "finite":
        return sound.all()
    values = tensor.abs() if demand == "not 0" else tensor
    # a smaller number than that may count as 0
    least = 0.0 if demand == "not negative" else torch.finfo(tensor.dtype).tiny
    return (sound & (values >= least)).all()


def _each(flags: Iterable[Tensor]) -> list[bool]:
    """Return flags [] of any devices as booleans, waiting for each device once."""
    found = list(flags)
    if not found:
        return []
    first = found[0].device
    return torch.stack([flag.to(first) for flag in found]).tolist()


def _fault(tensor: Tensor, demand: Demand) -> str:
    """Say what is wrong with a tensor."""
    if not torch.isfinite(tensor).all():
        return not_finite(tensor)
    wrong = tensor.reshape(-1)[(tensor.abs() if demand == "not 0" else tensor).argmin()]
    return f"holds {float(wrong):.4g}; it must be {demand}"
