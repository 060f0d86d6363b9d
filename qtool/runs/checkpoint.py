"""The checkpoint: everything needed to go on exactly where a run stopped."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qtool.errors import InputError
from qtool.files.whole import write_atomically
from qtool.models.architecture import Architecture
from qtool.reports.results import EpochLine

FORMAT = 2


@dataclass
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        model: state_dict: latent weights, scales, batch norm, where blends and ranges stand.
        optimizer: its state_dict.
        history: one line of metrics for each epoch done; its length is the position in the data.
        random: states of torch's generators, "cpu" and "cuda".
        architecture: what builds the same network again, without its initial weights.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    history: list[EpochLine]
    random: dict[str, Any]
    architecture: Architecture

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put everything back; the history is the caller's. Other contents raise as torch does.

        Of the generators of several GPUs as many are set as there are here; a run that goes on
        with another number of them draws other numbers there.
        """
        model.load_state_dict(self.model)
        optimizer.load_state_dict(self.optimizer)
        torch.set_rng_state(self.random["cpu"].cpu())
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index, state in enumerate(self.random["cuda"][:here]):  # there may have been more
            torch.cuda.set_rng_state(state.cpu(), index)


def take(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[EpochLine],
    architecture: Architecture,
) -> Checkpoint:
    """Return the present state as a checkpoint."""
    cuda: list[Tensor] = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    random = {"cpu": torch.get_rng_state(), "cuda": cuda}
    return Checkpoint(model.state_dict(), optimizer.state_dict(), history, random, architecture)


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint in one move."""
    lines = [line.to_json() for line in checkpoint.history]
    data = {"format": FORMAT, **vars(checkpoint), "history": lines}
    write_atomically(path, lambda temporary: torch.save(data, temporary))


def load(path: Path, device: torch.device) -> Checkpoint:
    """Read a checkpoint; nothing in the file is executed.

    Raises:
        InputError: If the file is missing, broken, or of another format.
    """
    try:
        data = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no checkpoint here; train the recipe first") from error
    # A damaged file can make torch fail with any error there is, each with its own long advice.
    except Exception as error:
        raise InputError(
            f"{path}: damaged, or not a checkpoint of qtool; restore it, or delete it and train "
            f"from the beginning with --resume"
        ) from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of format {FORMAT}, which this qtool reads")
    del data["format"]
    kinds: dict[str, type] = {"model": dict, "optimizer": dict, "history": list, "random": dict}
    kinds |= {"architecture": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(data.get(key), kind)]
    if wrong or len(data) > len(kinds):
        unknown = [key for key in data if key not in kinds]
        raise InputError(f"{path}: a damaged checkpoint, in {', '.join(wrong + unknown)}")
    data["history"] = [EpochLine.of(line, path) for line in data["history"]]
    return Checkpoint(**data)
