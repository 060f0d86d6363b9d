"""Mutated checkpoints and other files of run folders, and the commands that read them."""

import hashlib
import io
import json
import re
import shutil
import zipfile
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

import torch
import yaml
from torch import Tensor

from qtool.runs import epochs
from tests.hostile.mutations import ATOMS, changed_bytes, changed_data, walk
from tests.kit import recipe, shell

EPOCHS = {"training.epochs": 2}
OF_A_RUN = (  # commands that read a run
    ("inspect", "run"),
    ("convert", "run", "--device", "cpu"),
    ("export", "run", "--output", "x.onnx"),
    ("train", "r.yaml", "--run-dir", "half", "--resume", "--device", "cpu"),
    ("compare", "runs", "run", "run"),
)
_FRESH = {"model.weights": "run/checkpoint.pt"}


def make_base(folder: Path) -> Path:
    """Make a run that is finished, converted and exported, and one that stopped half-way."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(recipe(EPOCHS), sort_keys=False))
    (folder / "fresh.yaml").write_text(yaml.safe_dump(recipe(EPOCHS | _FRESH), sort_keys=False))
    told = epochs.say_epoch

    def stop(line: Any, epochs: int) -> None:
        told(line, epochs)
        raise KeyboardInterrupt

    with patch.object(epochs, "say_epoch", stop):
        shell("train", str(path), "--run-dir", str(folder / "half"), "--device", "cpu")
    for argv in (
        ["train", str(path), "--run-dir", str(folder / "run"), "--device", "cpu"],
        ["convert", str(folder / "run"), "--device", "cpu"],
        ["export", str(folder / "run")],
    ):
        code, _, err = shell(*argv)
        assert code == 0, err
    assert json.loads((folder / "half/summary.json").read_text())["status"] != "finished"
    assert (folder / "half/checkpoint.pt").is_file()
    return folder


def make(random: Random, folder: Path, index: int, base: Path) -> list[str]:
    """Copy a run with a mutated checkpoint into a folder; return the command that reads it."""
    how = index % 6
    run = _copied(base, folder, "half" if how == 3 else "run")
    path = run / "checkpoint.pt"
    kind = random.randrange(6)
    given = path.read_bytes()
    if kind <= 1:
        made = changed_bytes(given, random)
    elif kind == 2:
        made = _changed_archive(given, random)
    else:
        made = _changed_tensors(given, random)
    path.write_bytes(made)
    if random.random() < 0.75:  # the rest is told by its checksum
        _vouch_for(path)
    return [
        *map(list, OF_A_RUN),
        ["convert", "fresh.yaml", "--output", "made/m.safetensors", "--device", "cpu"],
    ][how]


OTHERS = (
    *("summary.json", "environment.json", "metrics.jsonl", "convert.json", "export.json"),
    "recipe.yaml",
)


def make_others(random: Random, folder: Path, index: int, base: Path) -> list[str]:
    """Copy a run with another of its files mutated; return the command that reads it."""
    how = index % 5
    run = _copied(base, folder, "half" if how == 3 else "run")
    path = run / OTHERS[(index // 5) % len(OTHERS)]
    if not path.is_file():
        path = run / "summary.json"
    text = path.read_text()
    if random.random() < 0.4 or path.suffix == ".jsonl":
        path.write_bytes(changed_bytes(text.encode(), random))
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(changed_data(yaml.safe_load(text), random)))
    else:
        path.write_text(json.dumps(changed_data(json.loads(text), random)))
    return list(OF_A_RUN[how])


def _copied(base: Path, folder: Path, name: str) -> Path:
    for recipes in ("r.yaml", "fresh.yaml"):
        shutil.copy(base / recipes, folder)
    return Path(shutil.copytree(base / name, folder / name))


def _vouch_for(path: Path) -> None:
    """Let a checksum beside a file, if there is one, be the file's."""
    beside = path.with_name(f"{path.name}.sha256")
    if beside.is_file():
        right = hashlib.sha256(path.read_bytes()).hexdigest()
        beside.write_text(re.sub(r"[0-9a-f]{64}", right, beside.read_text()))


def _changed_archive(given: bytes, random: Random) -> bytes:
    """Return an archive of torch with the bytes of one of its files changed, and its CRC right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(given)) as old, zipfile.ZipFile(made, "w") as new:
        items = old.infolist()
        pickle = next(item for item in items if item.filename.endswith("data.pkl"))
        chosen = pickle if random.random() < 0.7 else random.choice(items)
        for item in items:
            data = old.read(item)
            if item is chosen:
                data = changed_bytes(data, random)
            kind = zipfile.ZIP_DEFLATED if random.random() < 0.02 else zipfile.ZIP_STORED
            new.writestr(item.filename, data, kind)
    return made.getvalue()


def _changed_tensors(given: bytes, random: Random) -> bytes:
    """Return a checkpoint with one of its values replaced."""
    data = torch.load(io.BytesIO(given), weights_only=True)
    places: list[tuple[Any, Any]] = []
    walk(data, places)
    for _ in range(random.choice((1, 1, 2))):
        section, key = random.choice(places)
        value = section[key] if _has(section, key) else None
        if isinstance(value, Tensor) and random.random() < 0.8:
            section[key] = _changed_tensor(value, random)
        elif random.random() < 0.2:
            section.pop(key, None) if isinstance(section, dict) else None
        else:
            section[key] = random.choice(ATOMS)
    torch.save(data, made := io.BytesIO())
    return made.getvalue()


def _has(section: Any, key: Any) -> bool:
    return key in section if isinstance(section, dict) else key < len(section)


def _changed_tensor(value: Tensor, random: Random) -> Any:
    changes: list[Any] = [
        lambda v: v.double(),
        lambda v: v.to(torch.int64) if not v.is_complex() else v,
        lambda v: v.reshape(-1)[:0],
        lambda v: v.reshape(-1)[:1],
        lambda v: v.unsqueeze(0),
        lambda v: torch.full_like(v, float("nan")) if v.is_floating_point() else -v,
        lambda v: torch.full_like(v, float("inf")) if v.is_floating_point() else v * 0 + 127,
        lambda v: torch.zeros_like(v),
        lambda v: -v if v.dtype != torch.bool else ~v,
        lambda v: v.reshape(-1)[:1].expand(2**40) if v.numel() else v,
        lambda v: v.to(torch.complex64),
        lambda v: v.to_sparse() if v.ndim else v,
        lambda v: v.float().half(),
        lambda v: torch.empty(v.shape, device="meta"),
        lambda v: v.bool(),
        lambda v: [v],
        lambda v: v.tolist(),
        lambda v: v * 1e30 if v.is_floating_point() else v,
    ]
    return random.choice(changes)(value)
