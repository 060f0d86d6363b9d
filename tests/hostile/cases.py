"""Every kind of hostile file by its name; a case is a kind and a number, and the same each time."""

from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from tests.hostile import integers, onnx_files, recipes, runs

KINDS = {
    "recipes": lambda random, folder, index, _: recipes.make(random, folder, index),
    "checkpoints": runs.make,
    "run_files": runs.make_others,
    "integers": integers.make,
    "onnx": onnx_files.make,
}


def make_base(folder: Path) -> Path:
    """Make the good files that are mutated; return their folder."""
    runs.make_base(folder)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(folder / "image.png")
    images, labels = rng.integers(0, 256, (20, 16, 16), np.uint8), np.arange(20) % 10
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(folder / "images.npz", **arrays)
    state = torch.load(folder / "run" / "checkpoint.pt", weights_only=True)["model"]
    torch.save({k: v for k, v in state.items() if "quantizer" not in k}, folder / "weights.pt")
    return folder


def case_of(kind: str, index: int, folder: Path, base: Path) -> list[str]:
    """Write the files of a case into a folder; return the command that reads them."""
    for name in ("images.npz", "weights.pt") if kind == "recipes" else ():
        (folder / name).write_bytes((base / name).read_bytes())
    return KINDS[kind](Random(f"{kind} {index}"), folder, index, base)
