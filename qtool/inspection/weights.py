"""What a file of weights holds: the tensors of a state_dict, whoever wrote it."""

from pathlib import Path

import torch

from qtool.errors import DataError
from qtool.models.checkpoints import without_prefix
from qtool.models.weights import SUFFIXES, read_weights
from qtool.reports.inspections import InspectedLayer, Inspection

COUNTERS = torch.int64  # such as num_batches_tracked of batch norms


def names_weights(path: Path) -> bool:
    """Tell whether a file's name is one of weights, and of no integer model."""
    return path.suffix in SUFFIXES and path.suffix != ".safetensors"


def inspect_weights(path: Path) -> Inspection:
    """Return what there is to say of a state_dict, in any mapping that trainers put around it.

    Raises:
        DataError: If the file is missing, damaged, unsafe to load or holds no state_dict.
    """
    given = read_weights(path)
    state, prefix = without_prefix(given.state)
    notes = [note.removeprefix(f"{path}: ") for note in given.notes]
    if prefix:
        notes.append(f"the names begin with {prefix}, which is left out here and where they load")
    counted = [tensor for tensor in state.values() if tensor.is_floating_point()]
    return Inspection(
        source=str(path),
        kind="weights",
        parameters=sum(tensor.numel() for tensor in counted),
        file_bytes=path.stat().st_size,
        layers=[
            InspectedLayer.model_validate(
                {
                    "layer": name,
                    "weight": "x".join(map(str, tensor.shape)) or "1",
                    "datatype": str(tensor.dtype).removeprefix("torch."),
                    "bytes": tensor.numel() * tensor.element_size(),
                }
            )
            for name, tensor in state.items()
        ],
        notes=notes,
    )


def holds_floats_alone(path: Path) -> bool:
    """Tell whether a .safetensors file holds weights as they are trained, and no codes."""
    try:
        state = read_weights(path).state
    except DataError:
        return False
    kinds = {tensor.dtype for tensor in state.values()}
    return bool(kinds) and all(kind.is_floating_point or kind == COUNTERS for kind in kinds)
