"""Networks that tell several classes of an image: trained, converted, exported, asked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qtool import pipeline, uses
from qtool.errors import RecipeError
from qtool.integer.file import read_usage
from tests.kit import metrics, write_recipe

OWN = """
import torch

def images(several: bool = True):
    shades = [torch.full((8, 8), 20 * k, dtype=torch.uint8) for k in range(8)]
    half = [(shade, [k % 2, int(k > 3)]) for k, shade in enumerate(shades)]
    return half, half
"""


def write_table(folder: Path) -> dict[str, Any]:
    """Write images that are red, green, both or neither, and return their section of a recipe."""
    rows = ["file,red,green"]
    for number in range(48):
        red, green = number % 2, number // 2 % 2
        pixels = np.random.default_rng(number).integers(0, 60, (12, 12, 3))
        pixels[..., :2] += 150 * np.array([red, green])
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        rows.append(f"{number},{red},{green}")
    (folder / "labels.csv").write_text("\n".join(rows))
    named = {"name": "image_table", "file": "labels.csv", "labels": "several", "workers": 0}
    return named | {"root": str(folder), "batch_size": 8, "image_size": 16, "augment": ["mixup"]}


@pytest.mark.slow
def test_a_network_of_several_classes_goes_all_the_way(tmp_path: Path) -> None:
    loss = {"training.loss": "binary_cross_entropy", "training.epochs": 2}
    path = write_recipe(tmp_path, {"data": write_table(tmp_path)} | loss)
    run, file = tmp_path / "run", tmp_path / "m.onnx"
    summary = pipeline.train(path, run_dir=run, device="cpu")
    assert summary.validation_accuracy is not None
    assert all(0 <= line["train_accuracy"] <= 1 for line in metrics(run))
    assert pipeline.convert(run).validation_accuracy_after == summary.validation_accuracy
    assert read_usage(run / "integer.safetensors").several
    pipeline.export(run, output=file)
    answers = [uses.predict(model, [tmp_path / "3.png"]).images[0] for model in (run, file)]
    for one, other in zip(*(sorted(a.classes, key=lambda c: c.name) for a in answers), strict=True):
        assert one.name == other.name
        assert one.share == pytest.approx(other.share, abs=1e-4)
    assert abs(sum(c.share for c in answers[0].classes) - 1) > 1e-3  # no softmax


def test_a_loss_for_one_class_is_refused_once_the_data_say_that_there_are_several(
    tmp_path: Path,
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    changes = {"data": {"name": "own.py:images", "image_size": 16}}
    path = write_recipe(tmp_path, changes)
    why = "training.loss: images may have several classes, which cross_entropy does not take"
    with pytest.raises(RecipeError, match=why) as caught:
        pipeline.train(path, run_dir=tmp_path / "run", device="cpu")
    assert caught.value.exit_code == 2
