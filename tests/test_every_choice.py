"""Every estimator, range and rounding, on weights and on inputs: train, convert, export.

The trainings are too short to judge accuracy; what is unstable may do badly, but must end.
"""

from pathlib import Path
from typing import Any

import pytest

from qtool import pipeline
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.ranges import RANGES
from qtool.numerics.roundings import ROUNDINGS
from qtool.numerics.sign_family import SIGN_FAMILY
from qtool.runs.kept.folder import INTEGER
from tests.kit import write_recipe

OF_INPUTS = {"ranges": {"ema_min_max", "half_normal", "pact"}, "roundings": {"ceil"}}
OF_WEIGHTS = {"ranges": {"he_uniform", "qil"}, "roundings": set[str]()}
NEEDED = {"fixed": {"scale": 0.05}}


def cases(kind: str, names: list[str]) -> list[tuple[str, str]]:
    sides = {"weights": OF_INPUTS, "activations": OF_WEIGHTS}
    return [
        (side, name) for side, others in sides.items() for name in names if name not in others[kind]
    ]


def write(folder: Path, side: str, settings: dict[str, Any]) -> Path:
    """Write a recipe that differs from the plain one in `settings` of one side."""
    sides: dict[str, Any] = {
        "weights": {"bits": 2},
        "activations": {"bits": 4, "place": "layer_inputs"},
    }
    sides[side] |= settings
    plain = {
        "data": {"name": "digits", "image_size": 16, "train_samples": 128, "batch_size": 32},
        "training": {"epochs": 1, "optimizer": "adamw", "learning_rate": 1e-3},
    }
    return write_recipe(folder, plain | {"quantization": sides})


def train_and_convert(folder: Path, side: str, settings: dict[str, Any]) -> Path:
    run = folder / "run"
    trained = pipeline.train(write(folder, side, settings), run_dir=run, device="cpu")
    converted = pipeline.convert(run, device="cpu")
    assert trained.status == "finished"
    before, after = (
        getattr(converted, f"validation_accuracy_{when}") for when in ("before", "after")
    )
    assert abs(before - after) <= 0.02  # hardly trained, some images have two equal logits
    assert (run / INTEGER).is_file()
    return run


def of_estimator(name: str) -> dict[str, Any]:
    return {"estimator": name} | ({"bits": 1} if name in SIGN_FAMILY else {})


ESTIMATOR_CASES = [(s, n) for s in ("weights", "activations") for n in ESTIMATORS.names()]
RANGE_CASES = cases("ranges", RANGES.names())
ROUNDING_CASES = cases("roundings", ROUNDINGS.names())
GRID_CASES = [
    ("weights", {"bits": 2, "grid": "ternary"}),
    ("weights", {"bits": 1, "range": "mean_abs"}),
    pytest.param("weights", {"bits": 8, "saturation": "avoid"}, marks=pytest.mark.slow),
    pytest.param("activations", {"bits": 1}, marks=pytest.mark.slow),
    pytest.param("activations", {"bits": 1, "grid": "full"}, marks=pytest.mark.slow),
    pytest.param(
        "activations", {"bits": 1, "grid": "unsigned", "rounding": "ceil"}, marks=pytest.mark.slow
    ),
    pytest.param("activations", {"bits": 4, "grid": "asymmetric"}, marks=pytest.mark.slow),
    pytest.param(
        "activations",
        {"bits": 4, "grid": "asymmetric", "range": "min_max"},
        marks=pytest.mark.slow,
    ),
    pytest.param(
        "activations",
        {"bits": 2, "rounding": "ceil", "grid": "unsigned", "range": "half_normal"},
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize(
    ("side", "name"),
    [
        # of the others, weights have them in each run, and inputs in slow ones
        case
        if case[0] == "weights" or ESTIMATORS.facts(case[1]).serves_ceil
        else pytest.param(*case, marks=pytest.mark.slow)
        for case in ESTIMATOR_CASES
    ],
)
def test_every_estimator_trains_and_converts(tmp_path: Path, side: str, name: str) -> None:
    train_and_convert(tmp_path, side, of_estimator(name))


@pytest.mark.parametrize(("side", "name"), RANGE_CASES)
def test_every_range_trains_and_converts(tmp_path: Path, side: str, name: str) -> None:
    train_and_convert(tmp_path, side, {"range": {"name": name} | NEEDED.get(name, {})})


@pytest.mark.parametrize(("side", "name"), ROUNDING_CASES)
def test_every_rounding_trains_and_converts(tmp_path: Path, side: str, name: str) -> None:
    train_and_convert(tmp_path, side, {"rounding": name})


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(("side", "settings"), GRID_CASES, ids=str)
def test_every_new_grid_trains_converts_and_exports(
    tmp_path: Path, side: str, settings: dict[str, Any]
) -> None:
    exported = pipeline.export(train_and_convert(tmp_path, side, settings))
    assert exported.disagreement == ""
    assert exported.top1_agreement >= 0.98


@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("side", "settings"),
    [(side, of_estimator(name)) for side, name in ESTIMATOR_CASES]
    + [(side, {"range": {"name": n} | NEEDED.get(n, {})}) for side, n in RANGE_CASES]
    + [(side, {"rounding": name}) for side, name in ROUNDING_CASES],
    ids=str,
)
def test_every_choice_exports_too(tmp_path: Path, side: str, settings: dict[str, Any]) -> None:
    exported = pipeline.export(train_and_convert(tmp_path, side, settings))
    assert exported.disagreement == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [of_estimator(name) for side, name in ESTIMATOR_CASES if side == "activations"]
    + [{"range": {"name": n} | NEEDED.get(n, {})} for side, n in RANGE_CASES if side != "weights"]
    + [{"rounding": name} for side, name in ROUNDING_CASES if side == "activations"],
    ids=str,
)
def test_every_choice_trains_and_converts_at_every_value(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    train_and_convert(tmp_path, "activations", {"place": "every_value"} | settings)


def test_learned_ranges_train_and_convert_at_every_value(tmp_path: Path) -> None:
    train_and_convert(tmp_path, "activations", {"place": "every_value"})
