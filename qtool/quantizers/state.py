"""What checkpoints hold of a quantizer beside its scales: a few whole numbers, in one tensor.

A state_dict then holds nothing but tensors, as averages of models, safetensors and file formats
of other trainers ask. The numbers are float32, so that an average of equal ones is they again but
for its last bits; int64 would cut 2.9999998 to 2. Each state_dict gets a tensor of its own:
whoever writes into it changes no quantizer. Before, the state was a dict, which is still read.
"""

from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor

from qtool.numerics.grid import Kind

# Files hold a share for each, in this order: a new kind goes to the end.
KINDS: tuple[Kind, ...] = ("narrow", "full", "mid_rise", "unsigned", "asymmetric", "ternary")
ROOM = 0.01  # what an average may have kept of models whose state was another


class QuantizerState(TypedDict):
    """What there is to hold of any quantizer.

    ready: whether its range is set; grid: the kind, None before values decided it; steps: training
    steps that were counted; frozen: whether a blend is done, so that the scales stay.
    """

    ready: bool
    grid: Kind | None
    steps: int
    frozen: bool


def encode(state: QuantizerState) -> Tensor:
    """Return a state as a new tensor, float32 [9]: ready, steps, frozen, and 1 at its grid."""
    numbers = [float(state["ready"]), float(state["steps"]), float(state["frozen"])]
    return torch.tensor(numbers + [float(kind == state["grid"]) for kind in KINDS])


def decode(state: Tensor | Mapping[str, object]) -> QuantizerState:
    """Return the state in a tensor, which may be an average, or in the dict of older files.

    Raises:
        ValueError: If it is an average over models that had seen data and that had not, or whose
            grids differ: so is the scale, and it fits neither.
    """
    if isinstance(state, Tensor):
        ready, steps, frozen, *shares = state.tolist()
        if not all(min(abs(share), abs(share - 1)) <= ROOM for share in (ready, *shares)):
            raise ValueError(
                "the state of a quantizer is an average over models whose grids differ, or that "
                "had seen no data yet; average models of one prepare(..., example), or later ones"
            )
        pairs = zip(KINDS, shares, strict=False)
        kind: Kind | None = next((kind for kind, share in pairs if share > 0.5), None)
        return {
            "ready": ready > 0.5,
            "grid": kind,
            "steps": round(steps),
            "frozen": frozen > 0.5,
        }
    grid, steps = state["grid"], state.get("steps", 0)
    assert isinstance(steps, int)
    return {
        "ready": bool(state["ready"]),
        "grid": next((kind for kind in KINDS if kind == grid), None),
        "steps": steps,
        "frozen": bool(state.get("frozen", False)),
    }
