"""`compare equivalence` and `convert --to straight_through`, on real digits of 8 pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from qtool import pipeline
from qtool.comparison.equivalence.arms import equivalence_question, equivalence_trials
from qtool.comparison.question import ComparisonRequest
from qtool.comparison.report import Shown
from qtool.errors import InputError
from qtool.reports.comparisons import Equivalence
from qtool.reports.results import EpochLine, Summary
from qtool.runs.built.build import load_checked
from qtool.runs.kept.changes import read_record
from qtool.runs.kept.checkpoint import load
from qtool.runs.kept.folder import RunFolder
from qtool.straight_through.recipe import equivalent_of
from tests import kit
from tests.kit import refused

SHARP = {"name": "hyperbolic_tangent", "sharpness": 2.0}
WEIGHTS = {"bits": 2, "granularity": "per_tensor", "grid": "mid_rise", "range": "he_uniform"}
RECIPE: dict[str, Any] = {
    "seed": 0,
    "model": {"name": "mnist_convnet", "initialization": "he_uniform"},
    "data": {"name": "digits", "batch_size": 64, "augment": False, "train_samples": 640},
    "quantization": {
        "weights": WEIGHTS | {"estimator": SHARP},
        "overrides": [{"match": ["fc1", "fc2"], "weights": None}],
    },
    "training": {
        "epochs": 2,
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "learning_rate": {"name": "cosine", "start": 0.01, "stop": 0.0, "warmup": 0.02},
    },
}
ADAM = {"name": "adamw", "betas": [0.9, 0.95], "weight_decay": 0.0}


def write(folder: Path, recipe: dict[str, Any] = RECIPE, **weights: Any) -> Path:
    path = folder / "r.yaml"
    sides = recipe["quantization"]
    changed = sides | {"weights": sides["weights"] | weights} if weights else sides
    path.write_text(yaml.safe_dump(recipe | {"quantization": changed}))
    return path


def compare(path: Path, *settings: str, rates: list[float], **more: Any) -> Equivalence:
    usual = {"seeds": [0], "output": path.parent / "c"}
    return pipeline.compare_equivalence(
        path, rates=rates, assignments=list(settings), device="cpu", **usual | more
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Equivalence]:
    folder = tmp_path_factory.mktemp("study")
    return folder, compare(write(folder), rates=[0.02, 0.005])


def test_the_mapped_run_follows_the_custom_one_and_the_naive_one_does_not(
    study: tuple[Path, Equivalence],
) -> None:
    _, result = study
    errors = result.weight_alignment_error
    assert errors["mapped"][1] < errors["mapped"][0]
    assert errors["mapped"][1] < 0.3 * errors["naive"][1]
    assert errors["mapped"][1] < 2 * errors["jitter"][1]
    codes = result.quantized_weight_agreement
    assert codes["mapped"][1] > max(0.95, codes["naive"][1])
    changes = result.change_point_agreement
    assert changes["naive"][1] < changes["mapped"][1] <= codes["mapped"][1]
    assert result.inference_agreement["mapped"][1] >= 0.98
    mapped, naive = (result.slopes[arm] for arm in ("mapped", "naive"))
    assert mapped is not None
    assert naive is not None
    assert mapped.slope > 0.5 > naive.slope
    assert result.equivalent is None  # two rates on one seed do not tell how sure that is
    assert "may be equivalent to straight_through with lr x 0.53" in result.verdict


def test_comparison_json_has_the_keys_of_the_contract(study: tuple[Path, Equivalence]) -> None:
    folder, result = study
    assert json.loads((folder / "c" / "comparison.json").read_text()) == result.to_json()
    assert result.kind == "equivalence"
    assert result.learning_rates == [0.02, 0.005]
    assert result.seeds == [0]
    assert [arm.name for arm in result.arms[:4]] == [
        f"lr-0.02/{arm}" for arm in ("custom", "mapped", "naive", "jitter")
    ]
    for arm in result.arms:
        assert {"name", "values", "mean", "std", "failed"} <= set(arm.to_json())
    assert {item.against for item in result.differences} == {
        "lr-0.02/custom",
        "lr-0.005/custom",
    }
    curve = next(c for c in result.curves if c.arm == "mapped")
    assert curve.weight_alignment_error[0] == 0.0  # the arms start together
    assert curve.quantized_weight_agreement[0] == 1.0
    assert curve.weight_alignment_error[-1] == result.weight_alignment_error["mapped"][0]


def test_the_arms_differ_in_what_theory_says_only(study: tuple[Path, Equivalence]) -> None:
    folder, _ = study
    places = {a: folder / "c" / "lr-0.005" / a / "seed-0" for a in ("custom", "mapped", "naive")}
    recipes = {
        a: yaml.safe_load((place / "recipe.yaml").read_text()) for a, place in places.items()
    }
    mapped, naive = recipes["mapped"], recipes["naive"]
    alpha = mapped["quantization"]["weights"].pop("learning_rate_scale")
    assert alpha == pytest.approx(0.530428, abs=1e-6)
    assert mapped["model"].pop("weights") == str(places["mapped"] / "initial.safetensors")
    assert (mapped["model"].pop("initialization"), naive["model"].pop("initialization")) == (
        "default",
        "he_uniform",
    )
    assert (naive["model"].pop("weights"), naive["quantization"]["weights"]) == (
        "none",
        mapped["quantization"]["weights"] | {"learning_rate_scale": 1.0},
    )
    del naive["quantization"]["weights"]["learning_rate_scale"]
    assert mapped == naive
    jitter = folder / "c" / "lr-0.005" / "jitter" / "seed-0" / "recipe.yaml"
    moved = yaml.safe_load(jitter.read_text())["training"]["learning_rate"]
    assert moved["start"] == pytest.approx(0.00505)


def test_a_damaged_recipe_of_a_mapped_arm_is_a_failed_trial(
    study: tuple[Path, Equivalence], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = study
    damaged = folder / "c" / "lr-0.005" / "mapped" / "seed-0" / "recipe.yaml"
    kept = {path: path.read_text() for path in (damaged, folder / "c" / "comparison.json")}
    damaged.write_text("model: {name: [")
    monkeypatch.setattr("qtool.training.loop.Trainer.fit", None)  # nothing may train again
    try:
        result = compare(folder / "r.yaml", rates=[0.02, 0.005])
        assert damaged.read_text() == "model: {name: ["
    finally:  # others look at it, too
        for path, text in kept.items():
            path.write_text(text)

    (failed,) = result.failed_trials
    assert (failed.arm, failed.seed) == ("lr-0.005/mapped", 0)
    assert str(damaged) in failed.error
    before, _ = whole.weight_alignment_error["mapped"]
    assert result.weight_alignment_error["mapped"] == [before, None]
    assert result.equivalent is None


def test_a_damaged_start_is_made_anew_before_anything_is_trained_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path)
    request = ComparisonRequest.of(path, {"output": tmp_path / "c", "device": "cpu"}, seeds=1)
    question = equivalence_question(request, None, [0.01])
    (mapped,) = [t for t in equivalence_trials(question, request) if t.arm.endswith("mapped")]
    whole = mapped.folder.initial.read_bytes()
    mapped.folder.initial.write_bytes(whole[:-9])

    assert mapped in equivalence_trials(question, request)
    assert mapped.folder.initial.read_bytes() == whole
    assert "initial.safetensors: damaged; made anew" in capsys.readouterr().err


@pytest.mark.slow
def test_a_look_with_a_verdict_ends_it_and_the_seeds_after_it_are_not_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = [0.04, 0.02, 0.01, 0.005]
    result = compare(write(tmp_path), rates=rates, seeds=None, looks=[2, 3])
    said = capsys.readouterr().err
    assert "48 trainings, 16 arms x 3 seeds" in said
    assert "apart would be told apart 4 times in 5 (4 rates, 3 seeds), if errors lie 20 %" in said
    assert (result.seeds, result.equivalent) == ([0, 1], True)
    assert [(look.seeds, look.planned) for look in result.looks] == [([0, 1], True)]
    assert "Look 1 of 2 planned ones, at 2 seeds: each has level 0.0" in result.verdict
    assert not (tmp_path / "c" / "lr-0.01" / "custom" / "seed-2").exists()
    slope = result.slopes["mapped"]
    assert slope is not None
    assert slope.confidence is not None
    assert 0.95 < slope.confidence < 0.975
    assert all(gap.confidence and gap.confidence >= slope.confidence for gap in result.differences)


@pytest.mark.slow
def test_a_comparison_that_was_stopped_ends_as_if_it_had_not(
    study: tuple[Path, Equivalence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = study
    path, lines = write(tmp_path), []

    def stop(line: EpochLine, epochs: int) -> None:
        lines.append(line)
        if len(lines) in (1, 4):  # in the middle of custom, and of mapped
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qtool.runs.epochs.say_epoch", stop)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                compare(path, rates=[0.02, 0.005])
    resumed = compare(path, rates=[0.02, 0.005])
    assert resumed.model_copy(update={"recipe": whole.recipe}) == whole
    monkeypatch.setattr("qtool.training.loop.Trainer.fit", None)  # nothing may train again
    assert compare(path, rates=[0.02, 0.005]) == resumed


def test_under_adam_nothing_is_changed_and_one_run_is_both_mapped_and_naive(
    tmp_path: Path,
) -> None:
    training = RECIPE["training"] | {"optimizer": ADAM, "epochs": 2}
    path = write(tmp_path, RECIPE | {"training": training})
    result = compare(path, rates=[5e-4])
    assert [arm.name for arm in result.arms] == [
        f"lr-0.0005/{arm}" for arm in ("custom", "mapped", "jitter")
    ]
    errors = result.weight_alignment_error
    assert errors["naive"] == errors["mapped"]
    assert errors["mapped"][0] < 0.2
    place = tmp_path / "c" / "lr-0.0005" / "mapped" / "seed-0"
    weights = yaml.safe_load((place / "recipe.yaml").read_text())["quantization"]["weights"]
    assert weights["learning_rate_scale"] == 1.0
    assert result.alphas is None


def test_an_estimator_outside_the_class_is_run_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["training.epochs=1", "data.train_samples=128"]
    name = "element_wise_gradient_scaling"
    result = compare(
        write(tmp_path),
        *small,
        rates=[0.01],
        name=name,
        explain=True,
        margin=2.0,
        shown=Shown(page=True),
    )
    said = capsys.readouterr().err
    assert said.index("3 trainings, 3 arms x 1 seed") < said.index("trial 1/3")
    assert "of the learning rate" not in said  # nothing is told by it, whatever it is
    assert (result.margin, {gap.margin for gap in result.differences}) == (0.02, {0.02})
    assert [each.arm for each in result.explained] == [arm.name for arm in result.arms]
    for each in result.explained:
        (cosine,) = each.measures["coarse_gradient_cosine"]
        assert cosine is not None
        assert -1 <= cosine <= 1
    assert "What may explain it" in (tmp_path / "c" / "report.html").read_text()
    assert result.equivalent is None
    assert "depends on the sign of the gradient" in result.verdict
    assert set(result.weight_alignment_error) == {"naive", "jitter"}
    assert not (tmp_path / "c" / "lr-0.01" / "mapped").exists()


def test_each_layer_has_the_alpha_of_its_own_settings(tmp_path: Path) -> None:
    overrides = [
        {"match": "conv1", "weights": {"bits": 4, "estimator": "straight_through"}},
        {"match": "fc*", "weights": {"estimator": {"name": "sinusoidal", "amplitude": 0.8}}},
    ]
    sides = {"weights": WEIGHTS | {"estimator": SHARP}, "overrides": overrides}
    path = write(tmp_path, RECIPE | {"quantization": sides})
    result = compare(path, "training.epochs=1", "data.train_samples=128", rates=[0.01])
    place = tmp_path / "c" / "lr-0.01" / "mapped" / "seed-0"
    section = yaml.safe_load((place / "recipe.yaml").read_text())["quantization"]
    found = [section["weights"], *[item["weights"] for item in section["overrides"]]]
    scales = [item["learning_rate_scale"] for item in found]
    assert scales == [pytest.approx(0.530428, abs=1e-6), 1.0, pytest.approx(0.6)]
    assert {item["estimator"]["name"] for item in found} == {"straight_through"}
    assert result.alphas == [1.0, scales[0], scales[2]]
    assert result.curves[0].weight_alignment_error[0] == 0.0


def test_a_plain_learning_rate_and_a_stop_scale_too(tmp_path: Path) -> None:
    small = ["training.epochs=1", "data.train_samples=64"]
    compare(write(tmp_path), *small, "training.learning_rate=0.1", rates=[0.01])
    stop = ["training.learning_rate.stop=0.001"]
    compare(write(tmp_path), *small, *stop, rates=[0.02], output=tmp_path / "d")
    for place, expected in (
        ("c/lr-0.01", {"name": "constant", "value": 0.01}),
        ("d/lr-0.02", {"name": "cosine", "start": 0.02, "stop": 0.002, "warmup": 0.02}),
    ):
        recipe = tmp_path / place / "custom" / "seed-0" / "recipe.yaml"
        assert yaml.safe_load(recipe.read_text())["training"]["learning_rate"] == expected


@pytest.mark.parametrize(
    ("weights", "settings", "why"),
    [
        ({"range": "learned"}, [], r"quantization\.weights\.range: learned moves in training"),
        ({"range": "absmax"}, [], r"choose he_uniform, or \{name: fixed"),
        (
            {"estimator": None, "blend": "cubic", "range": "absmax"},
            [],
            r"quantization\.weights\.blend: a blend passes gradients by its alpha",
        ),
        (
            {"bits": 7, "saturation": "avoid"},
            [],
            r"quantization\.weights\.saturation: avoid takes fewer steps",
        ),
        ({}, ["quantization.weights=null"], "no weights are quantized; set quantization.weights"),
        (
            {},
            ["quantization.overrides=[{match: conv1, weights: {range: learned}}]"],
            r"quantization\.overrides\.0\.weights\.range: learned moves",
        ),
        (
            {"range": "learned"},
            ["quantization.overrides=[{match: conv1, weights: {bits: 4}}]"],
            r"1 problem\n  quantization\.weights\.range: learned moves",
        ),
        ({}, ["training.learning_rate=0.0"], "a learning rate that starts at 0 cannot be scaled"),
    ],
    ids=str,
)
def test_what_has_no_straight_through_form_is_refused(
    tmp_path: Path, weights: dict[str, Any], settings: list[str], why: str
) -> None:
    with pytest.raises(InputError, match=why):
        compare(write(tmp_path, **weights), *settings, rates=[0.01])
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--learning-rates", "0.1,x"], "is not a list of learning rates"),
        (["--learning-rates", "0.1,-1"], "is not a list of learning rates"),
        (["--learning-rates", "0.1,0.1"], "two of them are the same"),
        (["--estimator", "straight_trough"], "did you mean straight_through?"),
        (
            ["--looks", "2,3", "--learning-rates", "0.1"],
            "no look would have a verdict, which is by",
        ),
        (["--looks", "2,3", "--seeds", "4"], "the last one is at all seeds, and --seeds gives 4"),
        (["--margin", "0"], "--margin 0: give points of accuracy"),
    ],
    ids=str,
)
def test_wrong_options_end_in_exit_code_2(tmp_path: Path, argv: list[str], why: str) -> None:
    write(tmp_path)
    assert why in refused(tmp_path, "compare", "equivalence", "r.yaml", *argv)


def stopped_after(folder: Path, recipe: dict[str, Any], epochs: int) -> Path:
    """Train a run and stop it after so many epochs."""
    run = folder / "run"

    def stop(line: EpochLine, of: int) -> None:
        if line.epoch == epochs:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qtool.runs.epochs.say_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(write(folder, recipe), run_dir=run, device="cpu")
    return run


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    state = load(run / "checkpoint.pt", torch.device("cpu")).model
    return {name: state[f"{name}.weight"].double() for name in ("conv1", "conv2")}


def train(recipe: Path, run: Path, *settings: str) -> Summary:
    return pipeline.train(recipe, run_dir=run, assignments=list(settings), device="cpu")


def go_on(run: Path) -> Summary:
    return pipeline.train(run / "recipe.yaml", run_dir=run, device="cpu", resume=True)


@pytest.mark.parametrize("optimizer", [RECIPE["training"]["optimizer"], ADAM], ids=["sgd", "adam"])
def test_a_converted_run_goes_on_as_the_original_would_have(
    tmp_path: Path, optimizer: dict[str, Any]
) -> None:
    adaptive = optimizer is ADAM
    rate = {"name": "constant", "value": 2e-4 if adaptive else 4e-3}
    training = {"epochs": 4, "optimizer": optimizer, "learning_rate": rate}
    run = stopped_after(tmp_path, RECIPE | {"training": training}, 2)
    report = pipeline.convert_to_straight_through(run, device="cpu")
    mapped = Path(report.run)
    assert mapped == tmp_path / "run-straight-through"
    assert json.loads((mapped / "convert.json").read_text()) == report.to_json()
    assert (report.epochs_done, report.max_abs_difference) == (2, 0.0)
    # a straight-through continuation with nothing converted: other recipe, same checkpoint
    naive = tmp_path / "naive"
    naive.mkdir()
    plain = yaml.safe_load((run / "recipe.yaml").read_text())
    plain["quantization"]["weights"]["estimator"] = {"name": "straight_through"}
    (naive / "recipe.yaml").write_text(yaml.safe_dump(plain))
    (naive / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    start = weights_of(run)
    ends = {place: (go_on(place), weights_of(place))[1] for place in (run, mapped, naive)}
    own = equivalent_of(load_checked(run / "recipe.yaml"), "run").maps["conv2"]
    scale = torch.tensor((6 / 288) ** 0.5 / 1.5, dtype=torch.float64)
    goal = ends[run]["conv2"] if adaptive else own.map(ends[run]["conv2"], scale)
    apart = float((ends[mapped]["conv2"] - goal).abs().sum())
    unconverted = float((ends[naive]["conv2"] - ends[run]["conv2"]).abs().sum())
    moved = float((ends[run]["conv2"] - start["conv2"]).abs().sum())
    assert apart < 0.2 * unconverted
    assert unconverted > 0.05 * moved


def test_conversion_keeps_a_finished_run_finished_and_its_answers(tmp_path: Path) -> None:
    small = {"data": RECIPE["data"] | {"train_samples": 128}}
    path = write(tmp_path, RECIPE | small)
    before = train(path, tmp_path / "run", "training.epochs=1")
    report = pipeline.convert_to_straight_through(
        tmp_path / "run", output=tmp_path / "out", device="cpu"
    )
    after = go_on(tmp_path / "out")
    assert after.status == "finished"
    assert after.validation_accuracy == before.validation_accuracy
    assert [row.layer for row in report.layers] == ["conv1", "conv2"]
    assert all(0.1 < row.largest_shift < 0.25 for row in report.layers)
    integer = pipeline.convert(tmp_path / "out", device="cpu")
    assert integer.validation_accuracy_before == before.validation_accuracy
    with pytest.raises(InputError, match="holds a run already; choose another --output"):
        pipeline.convert_to_straight_through(
            tmp_path / "run", output=tmp_path / "out", device="cpu"
        )


def test_a_run_without_a_straight_through_form_is_not_converted(tmp_path: Path) -> None:
    small = ["training.epochs=1", "data.train_samples=64"]
    name = "quantization.weights.estimator=element_wise_gradient_scaling"
    train(write(tmp_path), tmp_path / "run", *small, name)
    with pytest.raises(InputError, match="no straight-through form: it depends on the sign"):
        pipeline.convert_to_straight_through(tmp_path / "run", device="cpu")
    with pytest.raises(InputError, match=r"r\.yaml: not a run folder"):
        pipeline.convert_to_straight_through(tmp_path / "r.yaml", device="cpu")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_under_adam_may_the_estimator_itself_move(tmp_path: Path, optimizer: str) -> None:
    sharpness = {"name": "linear", "start": 1.0, "stop": 2.0}
    path = write(tmp_path, estimator=SHARP | {"sharpness": sharpness})
    small = ["training.epochs=1", "data.train_samples=64", f"training.optimizer={optimizer}"]
    train(path, tmp_path / "run", *small)
    if optimizer == "sgd":
        with pytest.raises(InputError, match="its sharpness moves in training"):
            pipeline.convert_to_straight_through(tmp_path / "run", device="cpu")
        return
    report = pipeline.convert_to_straight_through(tmp_path / "run", device="cpu")
    ends = [
        load(Path(p) / "checkpoint.pt", torch.device("cpu")) for p in (tmp_path / "run", report.run)
    ]
    moments = [end.optimizer["state"][0]["exp_avg"].flatten() for end in ends]
    weight = ends[0].model["conv1.weight"].flatten()
    u = weight / ends[0].model["conv1.weight_quantizer.scale"] + 0.5
    t = u - u.floor() - 0.5
    k = torch.tensor(2.0)  # where the schedule has ended
    slope = k / torch.tanh(k) / torch.cosh(2 * k * t) ** 2
    inside = (u > -1) & (u < 2)
    torch.testing.assert_close(
        (moments[1] * slope)[inside], moments[0][inside], rtol=1e-3, atol=1e-9
    )


def test_recording_changes_no_number(study: tuple[Path, Equivalence], tmp_path: Path) -> None:
    folder, _ = study
    recorded = folder / "c" / "lr-0.02" / "custom" / "seed-0"
    train(recorded / "recipe.yaml", tmp_path / "plain")
    ends = [load(p / "checkpoint.pt", torch.device("cpu")) for p in (recorded, tmp_path / "plain")]
    for name, value in ends[0].model.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, ends[1].model[name]), name
    record = read_record(RunFolder(recorded), 2)
    kept = record.layers["conv2"].weights[-1]
    assert torch.equal(kept, ends[0].model["conv2.weight"].flatten())


def test_activations_that_round_at_random_do_so_alike_in_every_arm(tmp_path: Path) -> None:
    plain = {"name": "sinusoidal", "amplitude": 0.0}  # the straight-through estimator itself
    rounding = {"bits": 4, "rounding": "stochastic_rounding"}
    settings = ["training.epochs=1", "data.train_samples=128"]
    settings.append(f"quantization.activations={json.dumps(rounding)}")
    result = compare(write(tmp_path, estimator=plain), *settings, rates=[0.01])
    assert result.weight_alignment_error["mapped"] == [0.0]
    assert result.weight_alignment_error["jitter"] != [0.0]


def test_weights_that_no_layer_takes_may_have_no_straight_through_form(tmp_path: Path) -> None:
    own = {"estimator": {"name": "sinusoidal", "amplitude": 0.5}}
    base = WEIGHTS | {"estimator": "element_wise_gradient_scaling"}
    sides = {"weights": base, "overrides": [{"match": "*", "weights": own}]}
    path = write(tmp_path, RECIPE | {"quantization": sides})
    result = compare(path, "training.epochs=1", "data.train_samples=64", rates=[0.01])
    assert result.estimator == "sinusoidal(amplitude=0.5)"
    assert result.alphas == [pytest.approx(0.75**0.5)]


def test_naming_the_recipe_s_own_estimator_changes_nothing(tmp_path: Path) -> None:
    small = ["training.epochs=1", "data.train_samples=64"]
    path = write(tmp_path)
    plain = compare(path, *small, rates=[0.01])
    named = compare(path, *small, rates=[0.01], name="hyperbolic_tangent")
    assert named == plain


def test_a_comparison_may_be_gone_on_with_by_another_path_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["training.epochs=1", "data.train_samples=64"]
    path = write(tmp_path)
    whole = compare(path, *small, rates=[0.01])
    monkeypatch.chdir(tmp_path)
    assert compare(path, *small, rates=[0.01], output=Path("c")) == whole


@pytest.mark.slow
def test_what_is_held_out_judges_each_epoch(tmp_path: Path) -> None:
    small = ["training.epochs=2", "data.train_samples=128", "data.holdout=0.25"]
    result = compare(write(tmp_path), *small, rates=[0.01])
    folder = tmp_path / "c" / "lr-0.01"
    lines = [kit.metrics(folder / arm / "seed-0") for arm in ("custom", "mapped")]
    for figure in ("loss", "accuracy"):
        a, b = ([line[f"holdout_{figure}"] for line in each] for each in lines)
        flat = len({*a}) == 1 or len({*b}) == 1
        expected = None if flat else np.corrcoef(a, b)[0, 1]
        assert getattr(result, f"{figure}_correlation")["mapped"] == [pytest.approx(expected)]
    for curve in result.curves:
        assert len(curve.inference_agreement) == 2
        held_out, whole = (
            share * count for share, count in zip(curve.inference_agreement, (32, 500), strict=True)
        )
        assert held_out == pytest.approx(round(held_out))
        assert whole == pytest.approx(round(whole))
