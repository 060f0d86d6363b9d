"""What methods that take minutes have done so far, in a file, so that one that was killed goes on.

It is written after each layer or block, in one move, with a digest of itself, and holds what that
has changed: codes, and scales and biases. Another recipe, network, method or seed begins anew.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from qtool.console import say
from qtool.errors import DamagedFileError
from qtool.files.json_data import parse_json
from qtool.files.safetensors_data import read_header
from qtool.files.safetensors_digest import refuse_unless_as_written, write_with_digest
from qtool.graph.exact import sha256_of_state
from qtool.graph.inputs import Inputs
from qtool.post_training.held_codes import hold_codes
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.layers import quant_layers
from qtool.reports.improvements import Applied
from qtool.tensor_files import read_safetensors

FORMAT = "1"
CODES, CHANGED = "codes", "changed"


@dataclass
class Unit:
    """What was done to a layer or block.

    Attributes:
        codes: layer -> its codes, int8, shaped as rows of its weight.
        changed: other tensors of the model's state that are not as they were.
        applied: what is said of it.
    """

    codes: dict[str, Tensor] = field(default_factory=dict)
    changed: dict[str, Tensor] = field(default_factory=dict)
    applied: list[Applied] = field(default_factory=list)

    @torch.no_grad()
    def put_into(self, model: nn.Module) -> None:
        """Do to a model again what was done."""
        state = model.state_dict()
        for key, value in self.changed.items():
            if key in state:
                state[key].copy_(value)
            else:  # a bias that a layer got
                owner, _, name = key.rpartition(".")
                layer = model.get_submodule(owner)
                value = value.to(next(layer.parameters()).device)
                setattr(layer, name, nn.Parameter(value, requires_grad=False))
        layers = quant_layers(model)
        for name, codes in self.codes.items():
            layer = layers[name]
            hold_codes(layer, codes.to(layer.weight.device, torch.float32))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's state, but for the weights of its quantized layers."""
    weights = {f"{name}.weight" for name in quant_layers(model)}
    state: dict[str, Tensor] = model.state_dict()
    return {
        key: value.detach().clone()
        for key, value in state.items()
        if key not in weights and not key.endswith("_extra_state")
    }


def changes(before: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return what of a model's state is not as it was."""
    now = state_of(model)
    return {k: v for k, v in now.items() if k not in before or not torch.equal(v, before[k])}


def identity_of(model: nn.Module, batches: list[Inputs], said: str) -> str:
    """Return SHA-256 of all that decides what a method does to a model.

    Args:
        model: before anything was done to it.
        batches: of calibration images.
        said: method, parameters and seed.
    """
    digest = hashlib.sha256(f"{said} {prepared_state(model).settings!r}".encode())
    digest.update(sha256_of_state(model.state_dict()).encode())
    for batch in batches:
        tensors = {str(place): tensor for place, tensor in enumerate(batch.tensors)}
        digest.update(sha256_of_state(tensors).encode())
    return digest.hexdigest()


@dataclass
class Keeper:
    """Keeps units in a file as they are done; without a path it keeps none.

    Attributes:
        path: of the file.
        identity: of what is done.
        units: done so far.
    """

    path: Path | None
    identity: str
    units: dict[str, Unit] = field(default_factory=dict)

    @classmethod
    def begun(cls, path: Path | None, identity: str) -> "Keeper":
        """Return one that goes on from a file, if there is one of the same work."""
        if path is None or not path.is_file():
            return cls(path, identity)
        try:
            return cls(path, identity, _read(path, identity))
        except (OSError, ValueError, KeyError, SafetensorError, DamagedFileError) as error:
            why = str(error).splitlines()[0].removeprefix(f"{path}: ")
            say(f"note: {path}: {why}; beginning anew")
            return cls(path, identity)

    def add(self, name: str, unit: Unit) -> None:
        """Keep what was done to a layer or block.

        Raises:
            WriteError: If the file cannot be written.
        """
        self.units[name] = unit
        if self.path is None:
            return
        tensors: dict[str, Tensor] = {}
        for index, each in enumerate(self.units.values()):
            for kind, held in ((CODES, each.codes), (CHANGED, each.changed)):
                made = {f"{index}/{kind}/{k}": v.cpu().contiguous() for k, v in held.items()}
                tensors |= made
        said = {n: [row.to_json() for row in unit.applied] for n, unit in self.units.items()}
        metadata = {"format": FORMAT, "identity": self.identity, "units": json.dumps(said)}
        write_with_digest(self.path, save(tensors), metadata)

    def done(self) -> None:
        """Take the file away: what it was for is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


_UNITS = TypeAdapter(dict[str, list[dict[str, object]]])


def _read(path: Path, identity: str) -> dict[str, Unit]:
    """Return the units in a file.

    Raises:
        ValueError: If it is of other work, or none of these files.
        DamagedFileError: If it is not as it was written.
    """
    header = read_header(path)
    refuse_unless_as_written(path, header=header)
    if header.metadata.get("format") != FORMAT:
        raise ValueError("it is of another version of qtool")
    if header.metadata.get("identity") != identity:
        raise ValueError("it is of another recipe, network, method, seed or other images")
    try:
        said = _UNITS.validate_python(parse_json(header.metadata["units"]))
    except ValidationError as error:
        raise ValueError("its metadata is damaged") from error
    units = {n: Unit(applied=[Applied.of(row, path) for row in rows]) for n, rows in said.items()}
    in_order = list(units.values())
    for key, value in read_safetensors(path).items():
        index, kind, name = key.split("/", 2)
        unit = in_order[int(index)]
        (unit.codes if kind == CODES else unit.changed)[name] = value
    return units
