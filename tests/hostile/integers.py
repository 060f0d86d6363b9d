"""Mutated files of integer models, and the commands that read them."""

import json
import shutil
from pathlib import Path
from random import Random

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.hostile.mutations import changed_bytes, changed_data

NAME = "integer.safetensors"


def make(random: Random, folder: Path, index: int, base: Path) -> list[str]:
    """Write a mutated integer model into a folder; return the command that reads it."""
    path = folder / "m.safetensors"
    given = base / "run" / NAME
    how = index % 5
    kind = random.randrange(8)
    if kind <= 1:
        path.write_bytes(changed_bytes(given.read_bytes(), random))
    elif kind == 2:
        path.write_bytes(_changed_header(given.read_bytes(), random))
    else:
        _write_changed(given, path, random, tensors=kind == 3)
    if how == 4:
        shutil.copytree(base / "run", folder / "run")
        shutil.copy(path, folder / "run" / NAME)
    return [
        ["inspect", path.name],
        ["export", path.name, "--output", "x.onnx"],
        ["inspect", path.name, "--json"],
        ["predict", path.name, str(base / "image.png")],
        ["export", "run", "--output", "x.onnx"],
    ][how]


def _changed_header(data: bytes, random: Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = changed_data(json.loads(data[8 : 8 + length]), random)
    text = json.dumps(header).encode()
    size = len(text) if random.random() < 0.9 else random.choice((0, 1, 2**40, 2**63 - 1))
    return size.to_bytes(8, "little") + text + data[8 + length :]


def _write_changed(given: Path, path: Path, random: Random, *, tensors: bool) -> None:
    """Write a file of which one tensor, or one part of its metadata, is another."""
    from tests.hostile.runs import _changed_tensor

    state = load_file(given)
    with safe_open(given, framework="pt") as file:
        metadata = file.metadata()
    metadata.pop("sha256", None)  # as files of before have none
    if tensors:
        name = random.choice(sorted(state))
        made = _changed_tensor(state[name], random)
        if random.random() < 0.2 or not hasattr(made, "numel") or made.numel() > 10**7:
            del state[name]
        else:
            state[name] = made
    else:
        key = random.choice(sorted(metadata))
        try:
            metadata[key] = json.dumps(changed_data(json.loads(metadata[key]), random))
        except ValueError:
            metadata[key] = random.choice(("", "0", "3", "null", metadata[key] * 2))
    try:
        save_file({k: v.contiguous() for k, v in state.items()}, path, metadata)
    except (ValueError, RuntimeError, KeyError, NotImplementedError, TypeError):
        path.write_bytes(changed_bytes(given.read_bytes(), random))  # no such file can be
