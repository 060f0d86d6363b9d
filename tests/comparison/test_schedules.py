"""Which recipes a comparison of schedules trains, and that it trains them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qtool import pipeline
from qtool.comparison.arms.compared import trials_of
from qtool.comparison.arms.schedules import Scheduled, Window, schedule_arms
from qtool.comparison.execution.trials import Trial
from qtool.comparison.question import ComparisonRequest
from qtool.errors import InputError
from tests.kit import metrics, write_recipe

WEIGHTS = {"bits": 4, "range": "ppq", "blend": {"name": "cubic", "window": [0.1, 0.7]}}
BLENDED = {
    "seed": 5,
    "quantization.weights": WEIGHTS,
    "training.epochs": 2,
    "training.learning_rate": {"name": "cosine", "start": 0.1, "stop": 0.01, "warmup": 0.1},
}


def write(folder: Path, **quantization: Any) -> Path:
    changed = {f"quantization.{key}": value for key, value in quantization.items()}
    return write_recipe(folder, BLENDED | changed)


def trials(
    path: Path,
    names: list[str] | None = None,
    on: Scheduled = "alpha",
    windows: list[Window] | None = None,
    *settings: str,
    seeds: int = 1,
) -> list[Trial]:
    request = ComparisonRequest(path, seeds, path.parent, list(settings), torch.device("cpu"))
    return trials_of(schedule_arms(request, names, on, windows), request.folder("schedules"))


def arms(path: Path, *question: Any) -> dict[str, Any]:
    return {trial.arm: trial.recipe.as_dict() for trial in trials(path, *question)}


def test_each_shape_has_an_arm_and_the_first_one_is_straight_through(tmp_path: Path) -> None:
    made = trials(write(tmp_path), seeds=2)
    names = ["straight_through", "linear", "cubic", "cosine", "step"]
    assert [(trial.arm, trial.seed) for trial in made] == [(n, s) for n in names for s in (5, 6)]
    assert [trial.recipe.seed for trial in made] == [trial.seed for trial in made]
    first = made[0].recipe.as_dict()
    assert first["quantization"]["weights"]["estimator"] == {"name": "straight_through"}
    for trial in made[::2]:
        data = trial.recipe.as_dict()
        weights = data["quantization"]["weights"]
        assert ("blend" in weights) != ("estimator" in weights)
        for key in ("blend", "estimator"):
            weights.pop(key, None)
        first["quantization"]["weights"].pop("estimator", None)
        assert data == first


def test_a_shape_moves_in_the_recipe_s_own_window_or_in_those_given(tmp_path: Path) -> None:
    path = write(tmp_path)
    own = arms(path, ["step"])["step"]["quantization"]["weights"]["blend"]
    assert own == {"name": "step", "start": 0.0, "stop": 1.0, "window": [0.1, 0.7]}
    made = arms(path, ["linear", "step"], "alpha", [[0.0, 0.8], [0.25, 1.0]])
    assert list(made) == [
        "straight_through",
        "linear@0-0.8",
        "linear@0.25-1",
        "step@0-0.8",
        "step@0.25-1",
    ]
    blend = made["linear@0.25-1"]["quantization"]["weights"]["blend"]
    assert blend == {"name": "linear", "start": 0.0, "stop": 1.0, "window": [0.25, 1.0]}


def test_the_recipe_s_own_shape_keeps_its_parameters(tmp_path: Path) -> None:
    blend = {"name": "polynomial", "power": 5.0, "phases": 2}
    made = arms(write(tmp_path, weights=WEIGHTS | {"blend": blend}), ["polynomial", "cubic"])
    own, other = (made[n]["quantization"]["weights"]["blend"] for n in ("polynomial", "cubic"))
    assert own == blend | {"start": 0.0, "stop": 1.0}
    assert other == {"name": "cubic", "start": 0.0, "stop": 1.0, "phases": 2}
    jumps = arms(write(tmp_path, weights=WEIGHTS | {"blend": blend}), ["step"])["step"]
    assert "phases" not in jumps["quantization"]["weights"]["blend"]


def test_all_arms_estimate_batch_norm_statistics_alike(tmp_path: Path) -> None:
    path = write(tmp_path)
    batches = [data["training"].get("batch_norm_batches") for data in arms(path).values()]
    assert batches == [100] * 5
    given = trials(path, ["cubic"], "alpha", None, "training.batch_norm_batches=7")
    assert [trial.recipe.training.batch_norm_batches for trial in given] == [7, 7]
    of_rates = arms(path, None, "learning_rate").values()
    assert {data["training"].get("batch_norm_batches") for data in of_rates} == {None}


def test_a_network_that_is_quantized_in_overrides_only_has_an_alpha(tmp_path: Path) -> None:
    overrides = [{"match": "fc3", "weights": {"bits": 4, "range": "ppq", "blend": "cubic"}}]
    path = write(tmp_path, weights=None, activations=None, overrides=overrides)
    made = arms(path, ["linear"])["linear"]["quantization"]["overrides"][0]["weights"]
    assert made["blend"]["name"] == "linear"


def test_every_blend_is_changed_also_in_overrides_and_of_activations(tmp_path: Path) -> None:
    blend = {"name": "cubic"}
    path = write(
        tmp_path,
        weights={"bits": 4, "range": "ppq"},
        activations={"bits": 4, "range": "ema_min_max", "blend": blend},
        overrides=[
            {"match": "fc3", "weights": {"blend": "cubic"}, "activations": {"bits": 8}},
            {"match": "fc2", "weights": None},
        ],
    )
    made = arms(path, ["cosine"])
    for name, sort in (("straight_through", "estimator"), ("cosine", "blend")):
        section = made[name]["quantization"]
        changed = [section["activations"], section["overrides"][0]["weights"]]
        assert [tensor[sort]["name"] for tensor in changed] == [name, name]
        assert section["weights"]["estimator"] == {"name": "straight_through"}
        assert section["overrides"][0]["activations"] == {"bits": 8}


def test_a_recipe_without_a_blend_gets_one_for_its_weights(tmp_path: Path) -> None:
    path = write(tmp_path, weights={"bits": 4, "range": "mse", "estimator": "identity"})
    made = arms(path, ["linear"])["linear"]["quantization"]
    blend = {"name": "linear", "start": 0.0, "stop": 1.0, "window": [0.0, 0.8]}
    assert made["weights"]["blend"] == blend
    assert "estimator" not in made["weights"]
    assert "blend" not in made["activations"]


def test_learning_rates_move_between_the_same_ends(tmp_path: Path) -> None:
    made = arms(write(tmp_path), None, "learning_rate")
    rates = {name: data["training"]["learning_rate"] for name, data in made.items()}
    ends = {"start": 0.1, "stop": 0.01, "warmup": 0.1}
    assert rates == {name: {"name": name, **ends} for name in ("cosine", "linear", "step")} | {
        "constant": {"name": "constant", "value": 0.1, "warmup": 0.1}
    }
    assert all(data["quantization"]["weights"]["blend"] for data in made.values())


def test_trials_are_compared_with_the_straight_through_one_and_reused(tmp_path: Path) -> None:
    path, folder = write(tmp_path), tmp_path / "out"
    settings = {"names": ["linear", "step"], "seeds": 2, "output": folder, "device": "cpu"}
    result = pipeline.compare_schedules(path, **settings)
    assert (result.kind, result.on, result.seeds) == ("schedules", "alpha", [5, 6])
    assert [arm.name for arm in result.arms] == ["straight_through", "linear", "step"]
    assert [gap.against for gap in result.differences] == ["straight_through"] * 2
    assert json.loads((folder / "comparison.json").read_text()) == result.to_json()
    for arm in ("linear", "step"):
        for seed in (5, 6):
            last = metrics(folder / arm / f"seed-{seed}")[-1]
            assert last["alpha"] == 1
            assert last["validation_accuracy"] == last["blended_validation_accuracy"]
    changed = (folder / "linear/seed-5/checkpoint.pt").stat().st_mtime_ns
    assert pipeline.compare_schedules(path, **settings) == result
    assert (folder / "linear/seed-5/checkpoint.pt").stat().st_mtime_ns == changed


@pytest.mark.parametrize(
    ("on", "alone"), [("alpha", ["straight_through"]), ("learning_rate", ["constant"])]
)
def test_an_arm_without_a_window_is_there_once_whatever_the_windows(
    tmp_path: Path, on: Scheduled, alone: list[str]
) -> None:
    windows = [[0.0, 1.0], [0.0, 0.5]]
    made = trials(write(tmp_path), None, on, windows)
    assert [trial.arm for trial in made if "@" not in trial.arm] == alone


def test_a_piecewise_learning_rate_ends_where_its_last_value_is(tmp_path: Path) -> None:
    rate = "training.learning_rate={name: piecewise, values: [0.1, 0.01], at: [0.5]}"
    made = arms(write(tmp_path), ["linear"], "learning_rate", None, rate)["linear"]
    found = made["training"]["learning_rate"]
    assert found == {"name": "linear", "start": 0.1, "stop": 0.01, "warmup": 0.0}


def test_a_recipe_without_a_blend_gets_one_wherever_its_weights_are_quantized(
    tmp_path: Path,
) -> None:
    overrides = [
        {"match": "conv2", "weights": {"bits": 4, "range": "ppq", "estimator": "identity"}},
        {"match": "fc1", "weights": {"bits": 2, "range": "ppq"}},
        {"match": "fc2", "activations": {"bits": 8}},
    ]
    path = write(tmp_path, weights=None, overrides=overrides)
    for name, kept in (("straight_through", "estimator"), ("linear", "blend")):
        section = arms(path, ["linear"])[name]["quantization"]
        found = [place["weights"] for place in section["overrides"][:2]]
        assert [weights[kept]["name"] for weights in found] == [name, name]
        assert "blend" not in section["activations"]


def test_windows_that_look_the_same_are_refused(tmp_path: Path) -> None:
    windows = [[0.0, 0.8], [0.0, 0.80000001]]
    with pytest.raises(InputError, match=r"--windows: two of them are the same to six .*: 0-0\.8"):
        trials(write(tmp_path), ["linear"], "alpha", windows)


def test_a_network_whose_every_weight_is_blended_trains_to_the_end(tmp_path: Path) -> None:
    path = write(tmp_path, activations=None, weights=WEIGHTS | {"blend": {"name": "cubic"}})
    model = "model={name: two_linear_layers, columns: 256, hidden: 10}"  # nothing else to train
    settings = [model, "quantization.weights.blend.window=[0.0, 0.5]"]
    result = pipeline.compare_schedules(
        path, names=["cubic"], seeds=1, output=tmp_path / "o", assignments=settings, device="cpu"
    )
    assert [arm.failed for arm in result.arms] == [0, 0]
    assert metrics(tmp_path / "o" / "cubic" / "seed-5")[-1]["alpha"] == 1


def test_an_override_may_say_that_it_has_no_blend(tmp_path: Path) -> None:
    overrides = [{"match": "fc3", "weights": {"blend": None, "bits": 8}}]
    path = write(tmp_path, weights={"bits": 4, "range": "ppq"}, overrides=overrides)
    section = arms(path, ["linear"])["linear"]["quantization"]
    blends = [section["weights"]["blend"], section["overrides"][0]["weights"]["blend"]]
    assert [(blend["name"], blend["window"]) for blend in blends] == [("linear", [0.0, 0.8])] * 2
