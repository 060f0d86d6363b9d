"""Arms with an equal chance: written out, matched in their rates, tuned by what is held out."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qtool import pipeline
from qtool.comparison.arms.assigned import assignments_of, values_of
from qtool.comparison.arms.estimators import estimator_arms
from qtool.comparison.arms.fair import Fairness
from qtool.comparison.arms.given import given_arms
from qtool.comparison.arms.matching import integrated_rate, matched
from qtool.comparison.arms.schedules import schedule_arms
from qtool.comparison.arms.tuning import Choice, best_of, choices_of, grid_of
from qtool.comparison.execution.trials import Outcome
from qtool.comparison.question import ComparisonRequest
from qtool.errors import InputError, RecipeError
from qtool.recipe.places import put
from qtool.recipe.recipe import Recipe
from qtool.reports.comparisons import Arm, Comparison
from qtool.reports.fair_words import fair_sentences
from tests.kit import metrics, refused, shell, write_recipe

COSINE = {"name": "cosine", "start": 0.1, "stop": 0.01}
WEIGHTS = {"bits": 2, "range": "absmax"}


def request(path: Path, seeds: int | list[int] = 2, **more: Any) -> ComparisonRequest:
    return ComparisonRequest(path, seeds, path.parent / "out", None, torch.device("cpu"), **more)


def arms_of(folder: Path, changes: dict[str, Any], *names: str) -> dict[str, Any]:
    path = write_recipe(folder, changes)
    return {arm.name: arm for arm in estimator_arms(request(path), list(names), "weights")[0]}


# What is written on the command line


def test_commas_in_brackets_and_quotes_part_nothing() -> None:
    text = "a.b={name: x, at: [1, 2]}, c='p,q', learning_rate=1e-3"
    assert assignments_of(text, "--arm z") == {
        "a.b": {"name": "x", "at": [1, 2]},
        "c": "p,q",
        "training.learning_rate": 1e-3,
    }
    assert assignments_of(" ", "--arm z") == {}
    assert values_of("0.3x,1x,{name: cosine, start: 1}", "--tune a") == [
        "0.3x",
        "1x",
        {"name": "cosine", "start": 1},
    ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a", "'a' is no key=value"),
        ("a=", "'a=' is no key=value"),
        ("a..b=1", "is no key=value"),
        ("a=1, a=2", "a stands there twice"),
        ("a=[1", "a: '[1' is not YAML"),
        ("a=1,,b=0", "'' is no key=value"),
    ],
)
def test_what_is_no_assignment_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError) as error:
        assignments_of(text, "--arm z")
    assert str(error.value).startswith("--arm z: ")
    assert why in str(error.value)


def test_arms_that_are_written_out_differ_in_anything(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {"quantization.weights.estimator": "hyperbolic_tangent"})
    made = given_arms(
        request(path),
        [
            "as it is:",
            "sharp: quantization.weights.estimator.sharpness=1.5, training.epochs=3",
            "small-net: model.name=resnet20, data.image_size=32, training.learning_rate=0.5",
        ],
    )
    first, sharp, small = (arm.recipe(7) for arm in made)
    assert [arm.name for arm in made] == ["as it is", "sharp", "small-net"]
    assert first == made[0].base.recipe.model_copy(update={"seed": 7})
    weights = sharp.quantization.weights
    assert weights is not None
    assert weights.estimator is not None
    assert (weights.estimator.name, weights.estimator.params) == (
        "hyperbolic_tangent",
        {"sharpness": 1.5},
    )
    assert sharp.training.epochs == 3
    assert (small.model.name, small.training.learning_rate.params) == ("resnet20", {"value": 0.5})


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["training.epochs=3"], "--arm 'training.epochs=3': write it as 'name: key=value"),
        (["a: seed=1"], "--arm a: seed is not of an arm"),
        (["a/b:"], "--arm 'a/b': cannot be a folder's name"),
        (["..:"], "--arm '..': cannot be a folder's name"),
        (["Tuning:"], "--arm 'Tuning': is taken"),
        (["a:", "A:"], "--arm: a and A would be one folder"),
        (
            ["a: training.epoch=1"],
            "with a: 1 problem training.epoch: unknown key",
        ),
        (["a: quantization.overrides.2.match=x"], "--arm a: quantization.overrides.2.match: "),
    ],
)
def test_an_arm_that_is_none_is_refused_by_its_name(
    tmp_path: Path, texts: list[str], why: str
) -> None:
    write_recipe(tmp_path, {"quantization.overrides": [{"match": "fc3", "weights": None}]})
    options = [word for text in texts for word in ("--arm", text)]
    said = refused(tmp_path, "compare", "estimators", "r.yaml", *options)
    assert why in said


def test_arms_that_are_written_out_exclude_names(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    for more in (("--estimators", "identity"), ("--on", "weights")):
        said = refused(tmp_path, "compare", "estimators", "r.yaml", "--arm", "a:", *more)
        assert f"excludes {more[0]}" in said


# Rates


def alpha_of_tangent(u: float) -> float:
    """Harmonic mean of u coth(u) sech^2(2ut) over a bin, by a fine sum."""
    t = (np.arange(200_000) + 0.5) / 200_000 - 0.5
    return float(1 / np.mean(1 / (u / np.tanh(u) / np.cosh(2 * u * t) ** 2)))


def test_matching_divides_each_layer_s_rate_by_its_alpha(tmp_path: Path) -> None:
    tangent = {"name": "hyperbolic_tangent", "sharpness": 2.0}
    changes = {
        "quantization.weights": WEIGHTS | {"estimator": tangent, "learning_rate_scale": 0.5},
        "quantization.overrides": [
            {"match": "conv2", "weights": {"estimator": {**tangent, "sharpness": 1.2}}},
            {"match": "fc1", "weights": None},
            {"match": "fc2", "activations": None},
        ],
    }
    arm = arms_of(tmp_path, changes, "hyperbolic_tangent", "straight_through")
    made = matched(arm["hyperbolic_tangent"]).recipe(0).quantization
    scales = {
        name: settings.learning_rate_scale
        for name in ("conv1", "conv2", "fc2", "fc3")
        if (settings := made.for_layer(name)[0]) is not None
    }
    by_layer = {"conv1": 2.0, "conv2": 1.2, "fc2": 2.0, "fc3": 2.0}
    for name, sharpness in by_layer.items():
        assert scales[name] == pytest.approx(0.5 / alpha_of_tangent(sharpness), rel=1e-4), name
    straight = arm["straight_through"]
    assert matched(straight).recipe(0) == straight.recipe(0)
    rates = [integrated_rate(matched(each).recipe(0)) for each in arm.values()]
    assert rates[0] == pytest.approx(rates[1])


def test_a_blend_s_share_of_the_rate_is_what_it_lets_through(tmp_path: Path) -> None:
    path = write_recipe(
        tmp_path,
        {
            "quantization.weights": WEIGHTS,
            "training.learning_rate": {"name": "cosine", "start": 0.1, "stop": 0.0},
        },
    )
    straight, cubic = schedule_arms(request(path), ["cubic"], "alpha", [[0.0, 0.8]])
    p = (np.arange(100_000) + 0.5) / 100_000
    rate = 0.05 * (1 + np.cos(np.pi * p))
    moved = np.clip(p / 0.8, 0, 1)
    passed = (1 - moved) ** 3  # of a cubic alpha 1 - (1 - p)^3
    share = float((rate * passed).sum() / rate.sum())

    assert integrated_rate(straight.recipe(0)) == pytest.approx(0.5, rel=1e-5)  # momentum 0.9
    assert integrated_rate(cubic.recipe(0)) == pytest.approx(0.5 * share, rel=1e-4)
    assert integrated_rate(matched(cubic).recipe(0)) == pytest.approx(0.5, rel=1e-5)


def test_straight_through_beside_a_blend_lets_all_of_the_rate_through(tmp_path: Path) -> None:
    beside = WEIGHTS | {"estimator": "straight_through", "blend": {"name": "cubic"}}
    path = write_recipe(tmp_path, {"quantization.weights": beside})
    straight, cubic = schedule_arms(request(path), ["cubic"], "alpha", None)
    weights = cubic.recipe(0).quantization.weights
    assert weights is not None
    assert (str(weights.estimator), str(weights.blend)[:5]) == ("straight_through", "cubic")
    assert integrated_rate(cubic.recipe(0)) == integrated_rate(straight.recipe(0))
    other = put(cubic.recipe(0).as_dict(), {"quantization.weights.estimator": "identity"})
    assert integrated_rate(Recipe.model_validate(other)) is None


@pytest.mark.parametrize(
    ("changes", "name", "why"),
    [
        ({"training.optimizer": "adamw"}, "identity", "identity: adamw divides gradients"),
        ({}, "element_wise_gradient_scaling", "has no alpha with element_wise_gradient_scaling"),
        (
            {
                "quantization.weights.estimator": {
                    "name": "hyperbolic_tangent",
                    "sharpness": {"name": "linear", "start": 1.0, "stop": 2.0},
                }
            },
            "hyperbolic_tangent",
            "its sharpness moves in training",
        ),
    ],
)
def test_what_has_no_alpha_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], name: str, why: str
) -> None:
    write_recipe(tmp_path, {"quantization.weights": WEIGHTS} | changes)
    said = refused(
        tmp_path, "compare", "estimators", "r.yaml", "--estimators", name, "--on", "weights",
        "--match", "alpha",
    )  # fmt: skip
    assert "--match alpha: " in said
    assert why in said


def test_activations_have_no_alpha_to_match(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    argv = ("compare", "estimators", "r.yaml", "--match", "alpha")
    assert "--match alpha: is for weights" in refused(tmp_path, *argv, "--on", "activations")
    assert "'beta' is not alpha" in refused(tmp_path, *argv[:-1], "beta")


# Candidates


def choices(folder: Path, text: str, changes: dict[str, Any] | None = None) -> list[Choice]:
    arm = arms_of(folder, changes or {}, "identity")["identity"]
    return choices_of(arm, grid_of([text]), folder)


def test_a_factor_multiplies_what_the_recipe_has_and_a_value_replaces_it(tmp_path: Path) -> None:
    rate = {"training.learning_rate": COSINE}
    found = [
        choice.trial.recipe.training.learning_rate.params
        for choice in choices(
            tmp_path, "learning_rate=0.5x,2x,0.3,{name: linear, start: 1.0, stop: 0.5}", rate
        )
    ]
    assert found[0] == pytest.approx({"start": 0.05, "stop": 0.005})
    assert found[1] == pytest.approx({"start": 0.2, "stop": 0.02})
    assert found[2] == pytest.approx({"start": 0.3, "stop": 0.03})
    assert found[3] == {"start": 1.0, "stop": 0.5}
    plain = [c.trial.recipe.training.learning_rate for c in choices(tmp_path, "learning_rate=3x")]
    assert plain[0].params == {"value": pytest.approx(0.03)}
    sizes = [c.trial.recipe.data.batch_size for c in choices(tmp_path, "data.batch_size=0.5x,64")]
    assert sizes == [16, 64]


def test_candidates_are_judged_by_held_out_images_on_a_seed_of_their_own(tmp_path: Path) -> None:
    (first,), (second,) = (
        choices(tmp_path, "training.epochs=2", {"data.holdout": share}) for share in (0.0, 0.2)
    )
    assert first.trial.recipe.data.holdout == 0.1
    assert second.trial.recipe.data.holdout == 0.2
    assert first.arm.recipe(0).data.holdout == 0.0
    assert first.trial.seed == 100_000
    assert first.trial.folder.path == (
        tmp_path / "tuning" / "identity" / "epochs=2" / "seed-100000"
    )
    path = tmp_path / "r.yaml"
    arm = estimator_arms(request(path, [100_000, 100_001]), ["identity"], "weights")[0][0]
    assert choices_of(arm, grid_of(["training.epochs=2"]), tmp_path)[0].trial.seed == 100_002


def test_every_combination_has_a_folder_of_its_own(tmp_path: Path) -> None:
    arm = arms_of(tmp_path, {}, "identity")["identity"]
    grid = grid_of(["training.optimizer={name: sgd},adamw", "training.epochs=1,2"])
    folders = [choice.trial.folder.path for choice in choices_of(arm, grid, tmp_path)]
    assert len(set(folders)) == 4
    for folder in folders:
        assert set(folder.parent.name) <= set("abcdefghijklmnopqrstuvwxyz_=,-0123456789")


def summary(choice: Choice, status: str, accuracy: float | None, loss: float | None) -> Outcome:
    from qtool.reports.results import Summary

    figures = dict.fromkeys(("validation_accuracy", "validation_loss", "train_accuracy"))
    said: dict[str, Any] = {
        **figures,
        "status": status,
        "run": "r",
        "epochs": 1,
        "seconds": 1.0,
        "parameters": 1,
        "weight_bits_mean": 4.0,
        "train_loss": None,
        "holdout_accuracy": accuracy,
        "holdout_loss": loss,
    }
    return Outcome(choice.trial, Summary.model_validate(said))


@pytest.mark.parametrize(
    ("ends", "best"),
    [
        ([("finished", 0.5, 1.0), ("finished", 0.6, 2.0), ("failed", 0.9, 0.1)], 1),
        ([("finished", 0.5, 1.0), ("finished", 0.5, 0.9), ("finished", 0.4, 0.1)], 1),
        ([("finished", 0.5, 1.0), ("finished", 0.5, 1.0), ("finished", 0.4, 0.1)], 0),
        ([("finished", None, 1.0), ("finished", None, 0.9), ("running", None, None)], 1),
        ([("failed", None, None)] * 3, None),
    ],
)
def test_the_best_is_of_those_that_finished(tmp_path: Path, ends: Any, best: int | None) -> None:
    made = choices(tmp_path, "training.epochs=1,2,3")
    outcomes = {c.trial.arm: summary(c, *end) for c, end in zip(made, ends, strict=True)}
    found = best_of(made, outcomes)
    assert found is (None if best is None else made[best])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("learning_rate", "--tune: 'learning_rate' is no KEY=a,b,c"),
        ("learning_rate=1x,,2x", "--tune training.learning_rate: a value is missing"),
        ("learning_rate=1x,1x", "--tune training.learning_rate: a value stands there twice"),
        ("training.epoch=1,2", "and --tune epoch=1: 1 problem training.epoch: unknown key"),
        (
            "learning_rate=-1x,1x",
            "--tune training.learning_rate: -1x is not a factor above 0, such",
        ),
        ("learning_rate=0.0x,1x", "--tune training.learning_rate: 0.0x is not a factor above 0"),
        ("foo=1x", "--tune foo: unknown key; choose one of: seed, model"),
        ("model.name=2x", "--tune model.name: 2x multiplies a number, and identity has 'lenet5'"),
        (
            "data.train_sample=2x",
            "--tune data.train_sample: unknown key; did you mean train_samples",
        ),
        (
            "training.epochs=0.5x",
            "and --tune epochs=0.5x: 1 problem training.epochs: 0.5 is",
        ),
    ],
)
def test_a_grid_that_is_none_is_refused_before_anything_is_trained(
    tmp_path: Path, text: str, why: str
) -> None:
    write_recipe(tmp_path)
    said = refused(
        tmp_path, "compare", "estimators", "r.yaml", "--estimators", "identity", "--tune", text
    )
    assert why in said


def test_arms_are_tuned_and_then_compared_with_what_is_best(tmp_path: Path) -> None:
    path, out = write_recipe(tmp_path), tmp_path / "out"
    argv = (
        "compare", "estimators", str(path), "--estimators", "identity",
        "--tune", "learning_rate=0.01x,1x", "--seeds", "1", "--output", str(out),
    )  # fmt: skip
    code, shown, said = shell(*argv, "--device", "cpu")
    assert code == 0, said
    assert "identity was tuned: training.learning_rate = 0.0" in shown
    result = Comparison.read(out / "comparison.json")
    assert result.candidates is not None
    assert result.tuned is not None
    assert len(result.candidates) == 2
    for arm in result.arms:
        own = [each for each in result.candidates if each.arm == arm.name]
        best = max(own, key=lambda each: (each.holdout_accuracy or 0, -(each.holdout_loss or 0)))
        assert [each for each in own if each.chosen] == [best]
        assert result.tuned[arm.name] == best.values
        trial = metrics(out / arm.name / "seed-0")[-1]
        assert trial["learning_rate"] == pytest.approx(best.values["training.learning_rate"])
        assert "holdout_loss" not in trial
        for each, text in zip(own, ("0.01x", "1x"), strict=True):
            folder = out / "tuning" / arm.name / f"learning_rate={text}" / "seed-100000"
            lines = metrics(folder)
            assert each.holdout_accuracy == lines[-1]["holdout_accuracy"]
            assert math.isclose(each.holdout_loss or 0, lines[-1]["holdout_loss"])
        assert f"tuned {arm.name}: learning_rate=" in said
        assert (result.at_edge or {})[arm.name] == ["training.learning_rate"]
        assert f"note: {arm.name}: the best training.learning_rate lies at the edge" in said
    assert result.arms[0].integrated_rate == 1.0

    before = (out / "comparison.json").read_bytes()
    code, _, said = shell(*argv, "--device", "cpu")
    assert code == 0
    assert said.count("is finished already") == 3
    again = json.loads((out / "comparison.json").read_text())
    assert again["candidates"] == json.loads(before)["candidates"]


def test_python_takes_the_same(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {"quantization.weights": WEIGHTS})
    result = pipeline.compare_estimators(
        path,
        given=["a:", "b: quantization.weights.estimator=sinusoidal"],
        fairness=Fairness(match="alpha"),
        seeds=1,
        output=tmp_path / "out",
        device="cpu",
    )
    assert (result.on, result.match) == ("arms", "alpha")
    assert [arm.integrated_rate for arm in result.arms] == pytest.approx([1.0, 1.0])
    with pytest.raises(RecipeError, match="with c: "):
        pipeline.compare_estimators(path, given=["c: training.epochs=0"], seeds=1, device="cpu")


def test_what_was_done_to_arms_is_said() -> None:
    usual: dict[str, Any] = {"values": [0.5], "mean": 0.5, "std": None, "failed": 0}
    arms = [
        Arm(name="ste", integrated_rate=1.0, **usual),
        Arm(name="blend", integrated_rate=0.363, **usual),
        Arm(name="adam", **usual),
    ]
    result = Comparison(
        kind="schedules",
        recipe="r.yaml",
        seeds=[0],
        arms=arms,
        differences=[],
        verdict="",
        match="alpha",
        tuned={"ste": {"training.learning_rate": 0.1, "data.batch_size": 8}, "blend": {}},
        at_edge={"ste": ["data.batch_size"]},
    )
    assert list(fair_sentences(result)) == [
        "Learning rates of weights are divided by alpha, layer by layer.",
        "Learning rate that reaches the weights, as a share of ste's: blend 36 %.",
        "ste was tuned: training.learning_rate = 0.1, data.batch_size = 8 (edge of the grid).",
        "blend was tuned in vain: none of its candidates finished.",
    ]
    plain = result.model_copy(update={"match": None, "tuned": None, "arms": arms[:1]})
    assert list(fair_sentences(plain)) == []


def test_images_of_arrays_have_a_rate_too(tmp_path: Path) -> None:
    images = np.zeros((40, 28, 28), np.uint8)
    labels = np.arange(40) % 10
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    path = write_recipe(
        tmp_path,
        {
            "data": {"name": "arrays", "file": "a.npz", "root": str(tmp_path)},
            "quantization": {"weights": WEIGHTS},
        },
    )
    arm = estimator_arms(request(path), ["sinusoidal"], "weights")[0][0]
    rate = integrated_rate(matched(arm).recipe(0))
    assert rate == pytest.approx(0.01 / (1 - 0.9))
