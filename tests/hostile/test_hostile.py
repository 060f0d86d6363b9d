"""Mutated files and bombs end in a message and exit code 2: no traceback, no hang, no flood."""

import io
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.hostile.__main__ import run
from tests.hostile.cases import KINDS, case_of, make_base
from tests.hostile.judging import judged
from tests.kit import write_recipe

# a kind -> how many cases there are, and which ones are always judged
CASES = {
    "recipes": (3000, [*range(16), 34]),
    "checkpoints": (500, [3, 5, 45, 46]),
    "run_files": (500, [0, 4, 29]),
    "integers": (500, [0, 2, 5, 7]),
    "onnx": (500, [0, 4, 10, 14]),
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good files, which are mutated."""
    return make_base(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("kind", CASES)
def test_some_mutated_files_are_refused_or_harmless(kind: str, base: Path, tmp_path: Path) -> None:
    for index in CASES[kind][1]:
        folder = tmp_path / str(index)
        folder.mkdir()
        found = judged(case_of(kind, index, folder, base), folder)
        assert not found.problem, f"case {index}: {found.problem}\n{found.said}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_mutated_files_are_refused_or_harmless(kind: str, base: Path) -> None:
    found = run(kind, 0, CASES[kind][0], base)
    assert found["problems"] == [], found


def test_every_kind_is_judged() -> None:
    assert CASES.keys() == KINDS.keys()


def png(width: int, height: int) -> bytes:
    """Return an image of one color whose rows take a thousandth of what they unpack to."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = zlib.compress(bytes(1 + width) * min(height, 64))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    made = chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + made


def pickled_bomb() -> bytes:
    data: list[object] = ["x"]
    for _ in range(40):
        data = [data] * 10
    torch.save({"w": torch.zeros(1).expand(10**12), "x": data}, made := io.BytesIO())
    return made.getvalue()


def npz_bomb(megabytes: int = 2000) -> bytes:
    images = np.zeros(megabytes * 2**20 // 16, "V16")
    np.savez_compressed(made := io.BytesIO(), x_train=images)
    return made.getvalue()


def wide(kind: str) -> bytes:
    return {"json": b"[" + b"[]," * 10**6 * 20 + b"0]", "deep": b"[" * 10**7}[kind]


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 30)
)
NPZ = {"data": {"name": "arrays", "file": "x.npz", "root": "."}}
# a bomb -> its file, its bytes, and the command that reads it
BOMBS: dict[str, tuple[str, Callable[[], bytes], list[str]]] = {
    "YAML of aliases": ("r.yaml", LAUGHS.encode, ["inspect", "r.yaml"]),
    "YAML of brackets": ("r.yaml", lambda: b"[" * 999_000, ["inspect", "r.yaml"]),
    "YAML of keys": ("r.yaml", lambda: b"a: 1\n" * 190_000, ["inspect", "r.yaml"]),
    "YAML of a tag": ("r.yaml", lambda: b"!" * 999_000, ["inspect", "r.yaml"]),
    "YAML of one word": ("r.yaml", lambda: b"model: " + b"x" * 990_000, ["inspect", "r.yaml"]),
    "YAML of problems": (
        "r.yaml",
        lambda: b"".join(b"k%d: 1\n" % k for k in range(4000)),
        ["inspect", "r.yaml"],
    ),
    "JSON of lists": ("run/summary.json", lambda: wide("json"), ["inspect", "run"]),
    "JSON of brackets": ("run/summary.json", lambda: wide("deep"), ["compare", "runs", "run"]),
    "a checkpoint of views": ("run/checkpoint.pt", pickled_bomb, ["inspect", "run"]),
    "weights of views": ("weights.pt", pickled_bomb, ["convert", "w.yaml", "--output", "m/x"]),
    "a header of safetensors": (
        "x.safetensors",
        lambda: (2**62).to_bytes(8, "little") + b"{}",
        ["inspect", "x.safetensors"],
    ),
    "a header of a million tensors": (
        "x.safetensors",
        lambda: (30 * 2**20).to_bytes(8, "little") + (b'{"a":{},' * 2**22)[: 30 * 2**20],
        ["inspect", "x.safetensors"],
    ),
    "an archive of zeros": ("x.npz", npz_bomb, ["convert", "z.yaml", "--output", "m/x"]),
    "nodes without contents": (
        "x.onnx",
        lambda: b"\x3a\x80\x80\x80\x05" + b"\x0a\x00" * (5 * 2**20),
        ["inspect", "x.onnx"],
    ),
    "a picture of 4 billion pixels": ("x.png", lambda: png(65_535, 65_535), PREDICT := ["x"]),
    "a picture of 400 million pixels": ("x.png", lambda: png(20_000, 20_000), PREDICT),
    "PostScript": ("x.png", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", PREDICT),
}


@pytest.mark.parametrize(("file", "make", "argv"), BOMBS.values(), ids=BOMBS.keys())
@pytest.mark.slow
def test_a_bomb_does_not_go_off(
    file: str, make: Callable[[], bytes], argv: list[str], base: Path, tmp_path: Path
) -> None:
    shutil.copytree(base / "run", tmp_path / "run")
    write_recipe(tmp_path, {"model.weights": "weights.pt"}).rename(tmp_path / "w.yaml")
    write_recipe(tmp_path, NPZ).rename(tmp_path / "z.yaml")
    (tmp_path / file).write_bytes(make())
    (tmp_path / "run" / "checkpoint.pt.sha256").unlink(missing_ok=True)
    if argv is PREDICT:
        argv = ["predict", "run/model.onnx", file]
    found = judged(argv, tmp_path)
    assert not found.problem, f"{found.problem}\n{found.said}"
    assert found.code == (1 if argv[0] == "predict" else 2), found.said
    assert len(found.said) < 20_000


class Payload:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "of before 1.6"])
@pytest.mark.parametrize(
    ("file", "argv"),
    [
        ("weights.pt", ["convert", "w.yaml", "--output", "m/x.safetensors"]),
        ("run/checkpoint.pt", ["inspect", "run"]),
        ("run/checkpoint.pt", ["convert", "run"]),
        ("run/checkpoint.pt", ["export", "run", "--output", "x.onnx"]),
        ("half/checkpoint.pt", ["train", "r.yaml", "--run-dir", "half", "--resume"]),
    ],
    ids=["weights", "inspect", "convert", "export", "resume"],
)
def test_a_pickle_runs_nothing(
    file: str, argv: list[str], old: bool, base: Path, tmp_path: Path
) -> None:
    for name in ("run", "half"):
        shutil.copytree(base / name, tmp_path / name)
    shutil.copy(base / "r.yaml", tmp_path)
    write_recipe(tmp_path / "run", {"model.weights": "weights.pt"}).rename(tmp_path / "w.yaml")
    torch.save({"a": Payload()}, tmp_path / file, _use_new_zipfile_serialization=not old)
    for name in ("run", "half"):
        (tmp_path / name / "checkpoint.pt.sha256").unlink(missing_ok=True)
    found = judged(argv, tmp_path)
    assert found.code == 2, found.said
    assert not (tmp_path / "pwned").exists()
