"""A run on images that may have several classes: judged, chosen by F1, and converted."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score

from qtool import pipeline
from qtool.runs.kept.folder import RunFolder
from qtool.runs.run import Run
from qtool.training.patience import best_epoch
from tests.kit import metrics, write_recipe


def write(folder: Path) -> Path:
    """Write 40 images, red, green, both or neither, with their CSV; return a recipe of them."""
    rows = ["file,red,green"]
    numbers = np.random.default_rng(0)
    for index in range(40):
        red, green = index % 2, index // 2 % 2
        pixels = numbers.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        pixels[..., 0] += 180 * red
        pixels[..., 1] += 180 * green
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append(f"{index}.png,{red},{green}")
    (folder / "labels.csv").write_text("\n".join(rows))
    data = {"name": "image_table", "file": "labels.csv", "labels": "several", "workers": 0}
    data |= {"root": str(folder), "batch_size": 8, "image_size": 32, "holdout": 0.25}
    training = {"epochs": 4, "learning_rate": 0.1, "loss": "binary_cross_entropy"}
    training |= {"early_stopping": {"patience": 3}}
    changes = {"model.name": "resnet20", "data": data, "training": training}
    return write_recipe(folder, changes)


@pytest.mark.slow
def test_a_run_on_images_of_several_classes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = pipeline.train(write(tmp_path), run_dir=run, device="cpu")
    opened = Run.open(run, torch.device("cpu"))
    with torch.no_grad():
        pairs = [(opened.model(x) > 0, y > 0.5) for x, y in opened.data.validation.batches(0)]
    said, there = (torch.cat(each) for each in zip(*pairs, strict=True))
    last = metrics(run)[-1]
    assert last["validation_accuracy"] == float((said == there).all(1).float().mean())
    assert last["validation_f1"] == pytest.approx(f1_score(there, said, average="micro"))
    assert last["validation_f1"] == summary.validation_f1
    assert last["holdout_f1"] == summary.holdout_f1
    history = RunFolder(run).history()
    found = [line["holdout_f1"] for line in metrics(run)]
    assert best_epoch(history) == 1 + found.index(max(found))
    assert max(found) > 0.6
    assert not (run / "validation.npz").exists()
    converted = pipeline.convert(run, best=True, device="cpu")
    assert abs(converted.validation_accuracy_before - converted.validation_accuracy_after) <= 0.2
