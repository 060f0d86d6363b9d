"""The checkpoint: everything needed to go on exactly where a run stopped, and the one before it.

To keep more in it, add a field with a default to `Checkpoint` and its type to `OPTIONAL`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qtool
from qtool.errors import DamagedFileError, InputError
from qtool.files.checksums import NewestAndPrevious
from qtool.files.whole import write_atomically
from qtool.graph.exact import load_model, load_optimizer, not_finite
from qtool.models.architecture import Architecture
from qtool.reports.results import EpochLine
from qtool.runs.kept.sound import advice
from qtool.tensor_files import read_torch
from qtool.training.average import Average
from qtool.training.position import Position

FORMAT = 3
READABLE = (2, 3)  # 2 does not say which version of qtool wrote it
REQUIRED: dict[str, type] = {
    "model": dict,
    "optimizer": dict,
    "history": list,
    "random": dict,
    "architecture": dict,
}
OPTIONAL: dict[str, type] = {"qtool": str, "inside": dict, "average": dict}


@dataclass
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        model: state_dict: latent weights, scales, batch norm, where blends and ranges stand.
        optimizer: its state_dict.
        history: one line of metrics for each epoch done.
        random: states of torch's generators, "cpu" and "cuda".
        architecture: what builds the same network again, without its initial weights.
        qtool: version that wrote it, "" before it was kept.
        sha256: of the file that it was read from, which cannot hold it.
        inside: where it stands inside the epoch in progress; None at the end of one.
        average: of the weights, scales and statistics in `model`, by their names there, where a
            recipe asks for one.
    """

    model: dict[str, Any]
    optimizer: dict[str, Any]
    history: list[EpochLine]
    random: dict[str, Any]
    architecture: Architecture
    qtool: str = ""
    sha256: str = ""
    inside: Position | None = None
    average: dict[str, Tensor] | None = None

    @property
    def judged(self) -> Mapping[str, object]:
        """Return the state_dict that is judged and converted: the average, where there is one."""
        return self.model if self.average is None else self.model | self.average

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put everything back; the history is the caller's. Other contents raise as torch does.

        Of the generators of several GPUs as many are set as there are here; a run that goes on
        with another number of them draws other numbers there.

        Raises:
            ValueError: If something has another type or shape, or is not finite.
        """
        load_model(model, self.model)
        load_optimizer(optimizer, self.optimizer)
        torch.set_rng_state(self.random["cpu"].cpu())
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index, state in enumerate(self.random["cuda"][:here]):  # there may have been more
            torch.cuda.set_rng_state(state.cpu(), index)


def take(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: list[EpochLine],
    architecture: Architecture,
    inside: Position | None = None,
    *,
    average: Average | None = None,
) -> Checkpoint:
    """Return the present state as a checkpoint, at an epoch's end or inside it."""
    cuda: list[Tensor] = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    random = {"cpu": torch.get_rng_state(), "cuda": cuda}
    state = Checkpoint(model.state_dict(), optimizer.state_dict(), history, random, architecture)
    return replace(state, inside=inside, average=average and average.state())


def save(checkpoint: Checkpoint, path: Path) -> str:
    """Write a checkpoint in one move, its digest before it, and keep the one that was there.

    Returns:
        The file's SHA-256.

    Raises:
        WriteError: If it cannot be written there.
    """
    data = _contents(checkpoint)
    return NewestAndPrevious(path).write(lambda temporary: torch.save(data, temporary))


def save_alone(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint in one move, in the place of one that was there.

    Raises:
        WriteError: If it cannot be written there.
    """
    data = _contents(checkpoint)
    write_atomically(path, lambda temporary: torch.save(data, temporary))


def _contents(checkpoint: Checkpoint) -> dict[str, object]:
    """Return what a file holds of a checkpoint."""
    lines = [line.to_json() for line in checkpoint.history]
    said: dict[str, object] = {"history": lines, "qtool": qtool.__version__}
    data = {"format": FORMAT} | vars(checkpoint) | said
    del data["sha256"]
    for key in ("inside", "average"):
        if data[key] is None:
            del data[key]
    return data


def load(path: Path, device: torch.device) -> Checkpoint:
    """Read a checkpoint; nothing in the file is executed.

    Raises:
        InputError: If the file is missing, broken, or of another format.
    """
    try:
        with NewestAndPrevious.of(path).opened(path) as (file, digest):
            data = read_torch(file, device)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no checkpoint here; train the recipe first") from error
    except DamagedFileError as error:
        raise DamagedFileError(f"{error}; {advice(path)}") from error
    # A hostile file can make torch fail with any error there is, each with its own long advice.
    except Exception as error:
        raise InputError(
            f"{path}: damaged, or not a checkpoint of qtool; {advice(path)}"
        ) from error
    if not isinstance(data, dict) or data.get("format") not in READABLE:
        raise InputError(f"{path}: not a checkpoint of {_formats(data)}")
    del data["format"]
    kinds = REQUIRED | OPTIONAL
    missing = [key for key in REQUIRED if key not in data]
    wrong = [key for key in data if key not in kinds or not isinstance(data[key], kinds[key])]
    if missing or wrong:
        raise InputError(f"{path}: a damaged checkpoint, in {', '.join(missing + wrong)}")
    if where := not_finite({"history": data["history"], "architecture": data["architecture"]}):
        raise InputError(f"{path}: a damaged checkpoint, not finite in {where}")
    data["history"] = [EpochLine.of(line, path) for line in data["history"]]
    if [line.epoch for line in data["history"]] != list(range(1, len(data["history"]) + 1)):
        raise InputError(f"{path}: a damaged checkpoint, its history is not epoch 1, 2, ...")
    return Checkpoint(**data, sha256=digest)


def _formats(data: object) -> str:
    """Say which formats are read, and who reads another."""
    said = data if isinstance(data, dict) else {}
    number, writer = said.get("format"), said.get("qtool")
    read = " or ".join(map(str, READABLE))
    found = f"format {read}, which qtool {qtool.__version__} reads"
    if not isinstance(number, int) or number <= FORMAT:
        return found
    who = f"qtool {writer}" if isinstance(writer, str) else "a newer qtool"
    return f"{found}; {who} wrote format {number} and reads it"


assert {field.name for field in fields(Checkpoint)} == {*REQUIRED, *OPTIONAL, "sha256"}
