"""Runs whose images are varied and mixed: they go on to the same bits, and learn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qtool import pipeline
from qtool.cli import main
from qtool.data import user_transforms
from qtool.training.loop import Trainer
from tests.kit import write_recipe
from tests.runs.test_resume import LEARNED, metrics
from tests.runs.test_stops import ends_as_if_never_stopped

AUGMENT: list[Any] = [
    "default",
    {"name": "RandomRotation", "degrees": 10},
    "RandomErasing",
    {"name": "mixup", "alpha": 0.4},
    "cutmix",
]


def test_a_run_of_mixed_images_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    stops = [((Trainer, "_take_step", 9), (1, 3))]
    ends_as_if_never_stopped(LEARNED | {"data.augment": AUGMENT}, stops, tmp_path)


MINE = "def darker(image, *, share=0.5):\n    return (image * share).to(image.dtype)\n"


@pytest.mark.slow
def test_a_folder_varied_by_a_transform_of_one_s_own_trains_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    for kind, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(8):
            rng = np.random.default_rng(number)
            pixels = rng.integers(0, 60, (20, 24, 3)) + np.eye(3, dtype=np.int64)[kind] * 150
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"photos/{name}/{number}.png")
    changes = {
        "data": {
            "name": "image_folder",
            "root": str(tmp_path / "photos"),
            "batch_size": 4,
            "image_size": 16,
            "workers": 1,
            "augment": ["default", {"name": "mine.py:darker", "share": 0.8}, "mixup"],
        },
        "training.epochs": 2,
        "model.name": "resnet20",
    }
    path, run = write_recipe(tmp_path, changes), tmp_path / "run"
    summary = pipeline.train(path, run_dir=run, device="cpu")
    assert summary.status == "finished"
    assert (run / "mine.py").read_text() == MINE
    assert all(line["train_accuracy"] is not None for line in metrics(run))
    (tmp_path / "mine.py").write_text(MINE + "# changed\n")
    user_transforms._LOADED.clear()  # as in a process of its own
    assert pipeline.convert(run).validation_accuracy_before == summary.validation_accuracy
    with pytest.raises(SystemExit) as caught:
        main(["train", str(path), "--run-dir", str(run), "--resume"])
    assert caught.value.code == 2
