"""A budget: what it may say, what it chooses, and the files that come of it."""

import json
from contextlib import chdir
from pathlib import Path

import pytest
import torch
import yaml

from qtool.errors import RecipeError
from qtool.quantizers.prepare import prepare
from qtool.settings.budget import Budget
from qtool.settings.section import check
from tests.bits.test_costs import Tied
from tests.kit import refused, shell, write_recipe

MACS = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10  # of LeNet-5
SMALL = {
    "data.image_size": 28,
    "quantization.weights.range": "absmax",
    "quantization.activations.bits": 8,
    "quantization.activations.range": "min_max",
}


@pytest.mark.parametrize(
    ("said", "kind", "limit"),
    [
        ({"size": "1.5MB"}, "size", 1_500_000),
        ({"size": "36 kB"}, "size", 36_000),
        ({"size": "512B"}, "size", 512),
        ({"bits": 4.0}, "bits", 4),
        ({"bits": 3}, "bits", 3),
        ({"bitops": "2.0G"}, "bitops", 2e9),
        ({"bitops": 5e8}, "bitops", 5e8),
        ({"latency": "3ms"}, "latency", 3),
        ({"latency": "250us"}, "latency", 0.25),
    ],
)
def test_a_budget_is_an_amount_in_a_unit(said: dict[str, object], kind: str, limit: float) -> None:
    budget = check(Budget, said, "r")
    assert (budget.kind, budget.limit) == (kind, pytest.approx(limit))
    assert budget.asked == said


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "says nothing; give one of size: 1.5MB | bits: 4.0 | bitops: 2.0G | latency: 3ms"),
        ({"size": "1MB", "bits": 4.0}, "says size and bits; give one of"),
        ({"size": "1.5"}, "has no unit; give a number and one of B, kB, MB, GB, such as 1.5"),
        ({"size": "1.5mb"}, "is no unit of size"),
        ({"size": "large"}, "is no amount; give a number and one of B"),
        ({"size": "0kB"}, "is nothing; give a number"),
        ({"latency": "3"}, "has no unit; give a number and one of us, ms, s, such as 3ms"),
        ({"bits": 9.0}, "9 is no mean of bits; give 1 to 8"),
        ({"bitops": -5.0}, "is no amount"),
        ({"megabytes": 5}, "unknown key"),
    ],
)
def test_what_is_no_budget_is_told(said: dict[str, object], why: str) -> None:
    with pytest.raises(RecipeError) as refused_:
        check(Budget, said, "r")
    assert why in " ".join(str(refused_.value).split())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"quantization.budget": {"bits": 1.5}},
            "quantization.budget.bits: 1.5 is out of reach; the least possible is 2 bits",
        ),
        (
            {"quantization.budget": {"bitops": "1k"}},
            f"the least possible is {2 * 8 * MACS:,} bit-operations",
        ),
        (
            {
                "quantization.budget": {"bits": 3.0},
                "quantization.overrides": [{"match": "*", "weights": {"bits": 4}}],
            },
            "overrides say the width of every layer",
        ),
        (
            {"quantization.budget": {"bits": 3.0}, "quantization.weights": None},
            "quantization.budget: chooses widths of weights, which are float",
        ),
        (
            {
                "quantization.budget": {"bits": 3.0},
                "quantization.weights": {"bits": 2, "grid": "ternary"},
            },
            "quantization.budget: weights of grid: ternary",
        ),
    ],
)
def test_a_budget_that_cannot_be_is_told_and_nothing_is_written(
    tmp_path: Path, changes: dict[str, object], why: str
) -> None:
    path = write_recipe(tmp_path, {**SMALL, **changes})
    said = refused(tmp_path, "convert", str(path))
    assert why in said
    assert "measuring" not in said  # minutes, for a large network


def test_widths_are_chosen_kept_and_taken_again(tmp_path: Path) -> None:
    changes = {
        **SMALL,
        "quantization.budget": {"bits": 3.0},
        "quantization.overrides": [
            {"match": "conv1", "weights": {"bits": 8}},
            {"match": "fc3", "activations": {"bits": 7}},
        ],
    }
    path = write_recipe(tmp_path, changes)
    with chdir(tmp_path):
        code, out, err = shell("convert", str(path), "--json")
        assert code == 0, err
        folder = tmp_path / "runs" / "r"
        chosen = json.loads(out)["chosen_widths"]
        weights = {"conv1": 150, "conv2": 2400, "fc1": 48000, "fc2": 10080, "fc3": 840}
        mean = sum(chosen["widths"][n] * count for n, count in weights.items()) / 61470
        assert chosen["reached"] == pytest.approx(mean)
        assert mean <= 3
        assert chosen["widths"]["conv1"] == 8
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())["quantization"]
        written = yaml.safe_load((folder / "overrides.yaml").read_text())["quantization"]
        assert "budget" not in recipe
        own = changes["quantization.overrides"]
        assert recipe["overrides"] == [*written["overrides"], *own] == [*chosen["overrides"], *own]
        said = {name for each in written["overrides"] for name in each["match"]}
        assert said == {n for n, bits in chosen["widths"].items() if n != "conv1" and bits != 4}
        of_fc3 = next(each for each in written["overrides"] if "fc3" in each["match"])
        assert of_fc3["activations"] == {"bits": 7}
        layers = {layer["name"]: layer for layer in json.loads(out)["layers"]}
        assert {n: la["weight_bits"] for n, la in layers.items()} == chosen["widths"]
        assert layers["fc3"]["input_bits"] == 7
        code, again, err = shell("convert", str(path), "--json")
        assert code == 0, err
        assert "widths are those chosen before" in err
        assert json.loads(again)["chosen_widths"] == chosen
        said = shell("convert", str(path), "--set", "quantization.budget.bits=2.5")
        assert said[0] == 2
        assert "holds a different run" in said[2]


def test_a_training_begins_with_the_widths_and_goes_on_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path, {**SMALL, "quantization.budget": {"bits": 4.0}})
    with chdir(tmp_path):
        code, _, err = shell("train", str(path), "--no-report", "--json")
        assert code == 0, err
        folder = tmp_path / "runs" / "r"
        kept = json.loads((folder / "sensitivity.json").read_text())["chosen"]
        bits = json.loads((folder / "summary.json").read_text())["weight_bits_mean"]
        assert bits == pytest.approx(kept["bits_mean"], abs=1e-4)
        monkeypatch.setattr("qtool.bits.chosen.choose_widths", _never)
        code, out, err = shell("train", str(path), "--resume", "--json", "--no-report")
        assert code == 0, err
        assert json.loads(out)["status"] == "finished"


def _never(*args: object) -> None:
    raise AssertionError("it is chosen again")


def test_what_trains_many_or_prepares_by_itself_takes_no_budget(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {**SMALL, "quantization.budget": {"bits": 4.0}})
    said = refused(tmp_path, "compare", "estimators", str(path))
    assert "quantization.budget: each trial would choose widths of its own" in said
    code, out, _ = shell("inspect", str(path))
    assert code == 0
    assert "4-bit" in out
    with pytest.raises(RecipeError, match="budget: widths are chosen by qtool train and qtool"):
        prepare(Tied(), {"weights": {"bits": 4}, "budget": {"bits": 3.0}}, torch.ones(2, 2, 6, 6))


@pytest.mark.slow  # each file takes about a second
@pytest.mark.parametrize("limit", ["20kB", "33300B", "36kB", "70kB"])
def test_no_file_is_above_its_budget(tmp_path: Path, limit: str) -> None:
    path = write_recipe(tmp_path, {**SMALL, "quantization.budget": {"size": limit}})
    with chdir(tmp_path):
        code, out, err = shell("convert", str(path), "--json")
        if limit == "20kB":
            assert code == 2
            assert "20kB is out of reach; the least possible is" in err
            return
        assert code == 0, err
        chosen = json.loads(out)["chosen_widths"]
        code, out, err = shell("export", "runs/r", "--json")
        assert code == 0, err
    size = (tmp_path / "runs" / "r" / "model.onnx").stat().st_size
    assert size == json.loads(out)["file_bytes"] == chosen["file_bytes"] == chosen["reached"]
    assert size <= chosen["limit"]


@pytest.mark.slow
def test_the_bytes_of_the_recipes_own_width_are_enough_for_it(tmp_path: Path) -> None:
    changes, tried = dict(SMALL), list[dict[str, object]]()
    with chdir(tmp_path):
        for _ in range(2):
            path = write_recipe(tmp_path, changes)
            code, out, err = shell("convert", str(path), "--output", "x.safetensors", "--json")
            assert code == 0, err
            tried = json.loads(out).get("chosen_widths", {}).get("tried", [])
            code, _, err = shell("export", "x.safetensors", "--output", "x.onnx", "--unproven")
            assert code == 0, err
            changes["quantization.budget"] = {"size": f"{Path('x.onnx').stat().st_size}B"}
    assert [one["within"] for one in tried if one["by"] == "uniform 4 bits"] == [True]


@pytest.mark.slow
def test_a_file_that_was_trained_for_is_not_above_its_budget(tmp_path: Path) -> None:
    changes = {**SMALL, "quantization.budget": {"size": "36kB"}, "training.epochs": 3}
    changes["quantization.weights.range"] = "learned"
    path = write_recipe(tmp_path, changes)
    with chdir(tmp_path):
        code, _, err = shell("run", str(path), "--no-report", "--json")
        assert code == 0, err
    assert (tmp_path / "runs" / "r" / "model.onnx").stat().st_size <= 36_000


@pytest.mark.slow
def test_a_latency_is_measured(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, {**SMALL, "quantization.budget": {"latency": "1s"}})
    with chdir(tmp_path):
        code, out, err = shell("convert", str(path), "--json")
        assert code == 0, err
        chosen = json.loads(out)["chosen_widths"]
        assert 0 < chosen["reached"] <= 1000
        other = write_recipe(tmp_path, {**SMALL, "quantization.budget": {"latency": "0.001us"}})
        said = refused(tmp_path, "convert", str(other), "--output", "x.safetensors")
        assert "is out of reach; the least possible is" in said
        assert "ms, as measured" in said


@pytest.mark.slow
def test_the_smallest_file_within_a_drop_is_found(tmp_path: Path) -> None:
    changes = {**SMALL, "training.epochs": 3, "data.train_samples": 640}
    changes["quantization.weights.saturation"] = "avoid"
    path = write_recipe(tmp_path, changes)
    with chdir(tmp_path):
        code, _, err = shell(
            *("train", str(path), "--set", "quantization=null", "--run-dir", "float"),
            "--no-report",
        )
        assert code == 0, err
        said = ["--set", "model.weights=float/model.safetensors"]
        code, out, err = shell("convert", str(path), *said, "--max-drop", "2", "--json")
        assert code == 0, err
        found = json.loads(out)["max_drop"]
        assert found["images"] == 64
        assert 100 * (found["accuracy_float"] - found["accuracy"]) <= 2
        smaller = [one for one in found["tried"] if one["bits_mean"] < found["bits_mean"]]
        assert not any(one["within"] for one in smaller)
        code, out, err = shell("export", "runs/r", "--json")
        assert code == 0, err
        assert json.loads(out)["file_bytes"] == found["file_bytes"]
        said = refused(tmp_path, "convert", "float", "--max-drop", "1")
        assert "--max-drop is for a recipe" in said
