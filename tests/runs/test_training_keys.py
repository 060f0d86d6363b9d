"""The keys of `training` that a recipe may leave out: each changes what it says, and goes on."""

import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qtool import pipeline, uses
from qtool.evaluation import evaluate
from qtool.models.weights import read_state_dict
from qtool.recipe.recipe import Recipe
from qtool.reports.results import Summary
from qtool.runs.built.build import load_checked
from qtool.runs.built.equipment import note_on_average
from qtool.runs.epochs import start_or_resume
from qtool.runs.kept.folder import RunFolder
from qtool.runs.run import Run
from qtool.settings.section import check
from qtool.training.judging import Judge
from qtool.training.loop import Trainer
from qtool.training.losses import cross_entropy
from tests.kit import ABSENT, recipe, refused, shell, write_recipe
from tests.kit import metrics as lines
from tests.runs.test_resume import LEARNED, checkpoint, differences
from tests.runs.test_stops import ends_as_if_never_stopped

KEYS: dict[str, Any] = {
    "clip_gradient": 0.5,
    "ema": 0.8,
    "freeze": ["conv2"],
    "early_stopping": {"patience": 1, "min_delta": 1.0},  # no epoch is better by that
    "validation_top5": True,
    "class_weights": "balanced",
}
HELD = {"data.holdout": 0.25}  # 36 of 48 images are left to train on, 4 steps of an epoch


def best(folder: Path) -> dict[str, Any]:
    state = torch.load(folder / "best.pt", weights_only=True)
    for line in state["history"]:
        del line["seconds"]
    return state


def test_a_run_with_every_key_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    changes = LEARNED | HELD | {"training": LEARNED["training"] | KEYS}
    stops = [
        ((Trainer, "_ends", 2), (1, 4)),
        ((Judge, "validate", 1), (1, 4)),  # once it has ended early, and is finished
    ]
    ends_as_if_never_stopped(changes, stops, tmp_path)
    part, whole = tmp_path / "stopped", tmp_path / "whole"
    assert differences(best(whole), best(part)) == []
    for folder in (whole, part):
        summary = Summary.read(folder / "summary.json")
        assert (summary.epochs, summary.stopped_early) == (2, True)
        assert [line["validation_loss"] is None for line in lines(folder)] == [True, False]
        assert [line.get("validation_top5") for line in lines(folder)] == [
            None,
            summary.validation_top5,
        ]
    argv = ["train", str(tmp_path / "r.yaml"), "--run-dir", str(whole), "--resume", "--json"]
    code, out, said = shell(*argv, "--set", "training.epochs=5")
    assert (code, json.loads(out)["epochs"]) == (0, 2)
    assert "is finished already, it stopped early after epoch 2" in said


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of three epochs with an average of its weights, judged by a hold-out."""
    folder = tmp_path_factory.mktemp("averaged")
    changes = {"training.epochs": 3, "training.ema": 0.5, "training.learning_rate": 0.05}
    path = write_recipe(folder, HELD | changes)
    pipeline.train(path, run_dir=folder / "run", device="cpu")
    return folder / "run"


def test_best_pt_is_the_network_of_the_epoch_that_the_hold_out_chose(
    averaged: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    copytree(averaged, run, ignore=ignore_patterns("convert.json"))
    found = [line["holdout_accuracy"] for line in lines(run)]
    number = found.index(max(found)) + 1
    state = best(run)
    assert len(state["history"]) == number
    assert state["optimizer"] == {}
    opened = replace(Run.open(run, torch.device("cpu")), best=True)
    assert opened.data.holdout is not None
    with torch.no_grad():
        score = evaluate(opened.model, opened.data.holdout.batches(0), cross_entropy)
    assert score.accuracy == max(found)
    converted = pipeline.convert(run, best=True, device="cpu")
    assert converted.integer_model == str(run / "integer.best.safetensors")
    assert (run / "integer.best.convert.json").is_file()
    assert not (run / "convert.json").exists()
    other = best(run) | {"history": state["history"][:-1] or lines(run)[:2], "format": 3}
    torch.save(other, run / "best.pt")
    assert "best.pt: " in refused(tmp_path, "convert", "run", "--best")
    (run / "best.pt").unlink()
    assert "no best.pt yet" in refused(tmp_path, "convert", "run", "--best")


def test_five_of_few_classes_say_nothing(tmp_path: Path) -> None:
    changes = {
        "model": {"name": "two_linear_layers", "rows": 2, "columns": 2},
        "data": {"name": "gaussian_teacher", "rows": 2, "columns": 2, "batch_size": 16},
        "quantization": ABSENT,
        "training.loss": "squared_error",
        "training.validation_top5": True,
    }
    path = write_recipe(tmp_path, changes)
    assert "training.validation_top5: the data have " in refused(tmp_path, "train", str(path))


def test_weights_of_classes_are_of_training_alone_and_of_what_it_trains_on(tmp_path: Path) -> None:
    changes = {"training.class_weights": "balanced", "data.holdout": 0.5, "data.augment": False}
    path = write_recipe(tmp_path, changes)
    run = Run(RunFolder(tmp_path / "run"), load_checked(path), torch.device("cpu"))
    trainer = start_or_resume(run)[0]
    images, labels = (torch.cat(each) for each in zip(*run.data.train.batches(0), strict=True))
    with torch.no_grad():
        each = torch.nn.functional.cross_entropy(trainer.model(images), labels, reduction="none")
        mean_of_classes = [each[labels == k].mean() for k in labels.unique()]
        found = trainer.loss(trainer.model(images), labels)
    # so that classes count alike, whatever the number of their images
    torch.testing.assert_close(found, torch.stack(mean_of_classes).mean())
    assert not torch.isclose(found, each.mean(), rtol=1e-5)
    trainer.fit(lambda line: None)
    validation = evaluate(trainer.model.eval(), run.data.validation.batches(0), cross_entropy)
    assert trainer.history[0].validation_loss == validation.loss


def test_best_needs_a_run_that_holds_images_out(tmp_path: Path) -> None:
    path, run = write_recipe(tmp_path), tmp_path / "run"
    assert "--best takes a run folder" in refused(tmp_path, "convert", str(path), "--best")
    run.mkdir()
    path.rename(run / "recipe.yaml")
    assert "has no data.holdout" in refused(tmp_path, "convert", "run", "--best")


@pytest.mark.slow
def test_a_run_that_stopped_early_is_trained_as_one_that_did_not(tmp_path: Path) -> None:
    changes = HELD | {"training.epochs": 4, "training.learning_rate": 0.05}
    path, early, whole = write_recipe(tmp_path, changes), tmp_path / "early", tmp_path / "whole"
    pipeline.train(path, run_dir=whole, device="cpu")
    found = [line["holdout_accuracy"] for line in lines(whole)]
    delta = max(found)  # none is better by that than the first but where that is 0
    stopping = [f"training.early_stopping={{patience: 2, min_delta: {delta!r}}}"]
    pipeline.train(path, run_dir=early, device="cpu", assignments=stopping)
    assert len(lines(early)) == 3
    for one, two in zip(lines(early), lines(whole), strict=False):
        assert one["train_loss"] == two["train_loss"]
        assert one["holdout_loss"] == two["holdout_loss"]
    said = shell("convert", str(early))[2]
    assert "stopped early, after epoch 3 of 4 epochs" in said


def test_the_average_of_the_weights_is_what_every_file_but_the_checkpoint_s_model_holds(
    averaged: Path,
) -> None:
    run, summary = averaged, Summary.read(averaged / "summary.json")
    state = checkpoint(run)
    written = load_file(run / "model.safetensors")
    assert all(torch.equal(value, state["average"][name]) for name, value in written.items())
    assert not torch.equal(written["conv1.weight"], state["model"]["conv1.weight"])
    weights = read_state_dict(run / "checkpoint.pt")
    assert torch.equal(weights["conv1.weight"], state["average"]["conv1.weight"])
    converted = pipeline.convert(run, device="cpu")
    assert converted.validation_accuracy_before == summary.validation_accuracy
    scales = load_file(run / "integer.safetensors")["conv2.weight_scale"]
    assert torch.equal(scales, state["average"]["conv2.weight_quantizer.scale"].flatten())
    shown = uses.inspect(run).to_json()["layers"]
    low, high = scales.min(), scales.max()
    said = next(layer["weight scale"] for layer in shown if layer["layer"] == "conv2")
    assert f"{low:.3g}" in said
    assert f"{high:.3g}" in said


def test_an_average_that_has_not_forgotten_its_start_is_told_of() -> None:
    for decay, steps, told in (
        (0.9, 2, "at the end 81% of the average"),
        (0.9, 50, ""),
        (None, 2, ""),
    ):
        note = note_on_average(check(Recipe, recipe({"training.ema": decay}), "r"), steps)
        assert told in note
        assert bool(told) == bool(note)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training.clip_gradient": 0.0}, "training.clip_gradient: 0.0 is not more than 0.0"),
        (
            {"training.clip_gradient": 1.0, "training.gradient": "population"},
            "training.clip_gradient: expected gradients are taken as they are",
        ),
        (
            {"training.freeze": ["conv3", "fc*"]},
            "training.freeze: 'conv3' matches no module; did you mean conv2?",
        ),
        (
            {"training.early_stopping": {"patience": 2}},
            "training.early_stopping: epochs are judged by images that are held out; set "
            "data.holdout, such as 0.1",
        ),
        ({"training.early_stopping": {"min_delta": 0.1}}, "early_stopping.patience: missing"),
        (
            {"training.class_weights": [1.0, -1.0]},
            "training.class_weights: [1.0, -1.0] is neither balanced nor a list of numbers",
        ),
        ({"training.class_weights": "balance"}, "'balance' is neither balanced nor a list"),
        (
            {"training.class_weights": "balanced", "training.loss": "squared_error"},
            "training.class_weights: squared_error takes none; choose cross_entropy or "
            "multiclass_hinge",
        ),
        (
            {"training.validation_top5": True, "training.loss": "binary_cross_entropy"},
            "training.validation_top5: an image may have several classes; leave it out",
        ),
        (
            {"training.freeze": ["*"]},
            "training.freeze: nothing of the network is left to train; leave a part out",
        ),
        (
            {"training.cuda_graph": True, "training.optimizer": "Adagrad"},
            "training.cuda_graph: Adagrad cannot be captured in a graph; leave it out",
        ),
        (
            {"training.optimizer": {"name": "Adagrad", "betas": [0.9, 0.9]}},
            "training.optimizer.betas: Adagrad has no parameter betas",
        ),
    ],
)
def test_what_keys_cannot_say_is_a_recipe_error(
    changes: dict[str, Any], told: str, tmp_path: Path
) -> None:
    assert told in refused(tmp_path, "train", str(write_recipe(tmp_path, changes)))


@pytest.mark.slow
def test_an_optimizer_of_torch_trains_resumes_and_has_no_straight_through_form(
    tmp_path: Path,
) -> None:
    training = LEARNED["training"] | {"learning_rate": 1e-3, "optimizer": "Adafactor"}
    quantization = {"weights": {"bits": 4, "range": "he_uniform", "estimator": "sinusoidal"}}
    changes = LEARNED | {"training": training, "quantization": quantization}
    ends_as_if_never_stopped(changes, [((Trainer, "_take_step", 4), (0, 4))], tmp_path)
    message = refused(tmp_path, "convert", "whole", "--to", "straight_through")
    assert "training.optimizer: no straight-through form is known under Adafactor" in message
