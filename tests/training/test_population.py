"""Closed forms in the place of samples: the steps they take, and what is said of a sampled run."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qtool import pipeline
from qtool.errors import RecipeError
from qtool.evaluation import evaluate
from qtool.numerics.coarse_gradient import population_loss, spurious_minimum
from qtool.recipe import Recipe
from qtool.recipe.file import load_recipe, write_recipe
from qtool.reports.results import EpochLine
from qtool.runs.built import build
from qtool.runs.epochs import start_or_resume
from qtool.runs.kept import checkpoint
from qtool.runs.kept.folder import RunFolder
from qtool.runs.run import Run
from qtool.settings.section import check
from qtool.training.loop import Trainer
from qtool.training.losses import LOSSES
from qtool.training.population import Population
from tests.kit import metrics, recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "papers" / "yin2019_two_layer.yaml"
SMALL = ["data.samples=200", "training.epochs=2", "training.checkpoint_every=1"]
CPU = torch.device("cpu")


def trainer(*assignments: str) -> Trainer:
    small = load_recipe(RECIPE, [*SMALL, *assignments])
    return start_or_resume(Run(RunFolder(Path("/nowhere")), small, CPU))[0]


def student(run: Trainer) -> tuple[Tensor, Tensor]:
    v, w = (run.model.get_parameter(f"{name}.weight") for name in ("second", "first"))
    return v.detach().double().flatten(), w.detach().double().flatten()


def teacher(*assignments: str) -> tuple[Tensor, Tensor]:
    found = build.make_data(load_recipe(RECIPE, [*SMALL, *assignments]), CPU).teacher
    assert found is not None
    return found.v, found.w


def one_step(run: Trainer, rate: float) -> tuple[Tensor, Tensor]:
    """Return by how much v and w moved in one step, over the learning rate."""
    population = next(w for w in run.watchers if isinstance(w, Population))
    v, w = student(run)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    take = population.around(lambda x, y: pytest.fail("a batch was used"), run.optimizer)
    take(torch.empty(0), torch.empty(0))
    new_v, new_w = student(run)
    return (v - new_v) / rate, (w - new_w) / rate


def test_a_step_descends_the_population_loss_in_v() -> None:
    run = trainer("model.start=random")
    v, w = student(run)
    v.requires_grad_(True)
    theta = torch.acos((w / w.norm()) @ teacher()[1])
    ones = torch.ones(len(v), dtype=torch.float64)
    v_star = teacher()[0]
    share = 1 - 2 * theta / torch.pi
    f = (v @ v + (ones @ v) ** 2 - 2 * (share * v @ v_star + (ones @ v) * (ones @ v_star))) / 8
    f.backward()
    assert v.grad is not None
    torch.testing.assert_close(one_step(run, 1.0)[0], v.grad, rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimator", ["identity", "relu", "clipped_relu"])
def test_a_sampled_gradient_is_the_expected_one_on_average(estimator: str) -> None:
    chosen = f"quantization.activations.estimator={estimator}"
    expected = one_step(trainer(chosen, "model.start=random"), 1e-2)
    sizes = ["data.samples=200000", "data.batch_size=200000"]
    run = trainer(chosen, "model.start=random", "training.gradient=sampled", *sizes)
    before = student(run)
    inputs, labels = next(iter(run.train.batches(0)))
    loss = run.loss(run.model(inputs), labels)
    loss.backward()
    for name, wanted in zip(("second", "first"), expected, strict=True):
        found = run.model.get_parameter(f"{name}.weight").grad
        assert found is not None
        torch.testing.assert_close(found.flatten().double(), wanted, rtol=0, atol=0.05)
    assert float(loss.detach()) == pytest.approx(
        float(population_loss(*before, *teacher())), rel=0.02
    )


@pytest.mark.parametrize("gradient", ["sampled", "population"])
def test_each_epoch_says_where_the_population_loss_is(gradient: str) -> None:
    run = trainer(f"training.gradient={gradient}", "training.learning_rate=1e-3")
    start = float(population_loss(*student(run), *teacher()))
    run.fit(lambda line: None)
    first, last = run.history
    assert last.population_loss == float(population_loss(*student(run), *teacher()))
    assert first.population_loss < start
    assert 0 <= last.largest_rise < 0.1
    assert -1 <= last.gradient_cosine <= 1
    if gradient == "population":
        assert last.largest_rise < 1e-6
        assert last.gradient_cosine > 0
        assert last.population_loss < last.train_loss < first.population_loss


def test_relu_settles_beside_the_spurious_minimum_and_the_identity_leaves_it() -> None:
    found = {}
    for estimator in ("relu", "clipped_relu", "identity"):
        run = trainer(
            f"quantization.activations.estimator={estimator}",
            "data.samples=100",
            "data.repeats=300",
            "data.seed=2",
        )
        run.fit(lambda line: None)
        found[estimator] = run.history[-1].population_loss
        rises = max(line.largest_rise for line in run.history)
        assert (rises < 1e-6) == (estimator != "identity")
    v_star, w_star = teacher("data.seed=2")
    minimum = spurious_minimum(v_star, w_star)
    assert minimum is not None
    lowest = float(population_loss(*minimum, v_star, w_star))
    for estimator in ("relu", "clipped_relu"):
        assert found[estimator] == pytest.approx(lowest, abs=1e-3)


def test_where_there_are_no_classes_there_is_no_accuracy(tmp_path: Path) -> None:
    write_recipe(load_recipe(RECIPE, SMALL), tmp_path / "small.yaml", "small")
    run = tmp_path / "run"
    summary = pipeline.train(tmp_path / "small.yaml", run_dir=run, device="cpu")
    assert summary.validation_accuracy is None
    assert json.loads((run / "summary.json").read_text()) == summary.to_json()
    assert [line["train_accuracy"] for line in metrics(run)] == [None, None]
    converted = pipeline.convert(run, device="cpu")
    assert converted.validation_accuracy_before is None
    assert pipeline.export(run).accuracy_runtime is None
    assert pipeline.compare_runs([run]).verdict == "No accuracy is known."


def test_a_resumed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    write_recipe(load_recipe(RECIPE, SMALL), tmp_path / "two.yaml", "two epochs")
    two = load_recipe(tmp_path / "two.yaml")
    whole = pipeline.train(tmp_path / "two.yaml", run_dir=tmp_path / "whole", device="cpu")
    cut = RunFolder(tmp_path / "cut")
    first, architecture = start_or_resume(Run(cut, two, CPU))

    def stop(line: EpochLine) -> None:
        state = checkpoint.take(first.model, first.optimizer, first.history, architecture)
        checkpoint.save(state, cut.checkpoint)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.fit(stop)
    again, _ = start_or_resume(Run(cut, two, CPU))
    again.fit(lambda line: None)
    last = metrics(tmp_path / "whole")[-1]
    assert again.history[-1].population_loss == last["population_loss"]
    assert again.history[-1].validation_loss == whole.validation_loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model={name: lenet5}"], r"model\.name: gaussian_teacher has no pictures"),
        (["training.loss=cross_entropy"], r"training\.loss: its targets are numbers"),
        (["model.hidden=2"], r"model\.start: near_spurious_minimum takes model\.hidden: 1"),
        (["model.output=fixed"], r"training\.gradient: population takes model\.hidden: 1 and"),
        (["model.weights=a.pt"], r"model\.start: near_spurious_minimum takes model\.weights: none"),
        (["quantization.activations.bits=2"], r"population takes activations: \{bits: 1, grid: un"),
        (["quantization.activations.range.scale=0.5"], r"range: \{name: fixed, scale: 1\.0\}\}"),
        (["quantization=null"], r"population takes float weights, and of the inputs only"),
        (["quantization.weights={bits: 4}"], r"population takes float weights"),
        (["quantization.overrides=[]"], r"population takes float weights, and of the inputs only"),
        (
            ["quantization.activations.estimator=log_tailed_relu"],
            r"population takes an estimator of activations among identity, relu, clipped_relu",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(RECIPE, changes)


def test_a_sampled_run_may_be_of_any_kind_but_has_no_closed_forms_then() -> None:
    changes = ["training.gradient=sampled", "model.start=random", "model.hidden=2"]
    run = trainer(*changes)
    assert run.watchers == []
    run.fit(lambda line: None)
    assert "population_loss" not in run.history[-1].to_json()


def test_a_score_on_numbers_has_no_accuracy() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 3.0])
    score = evaluate(lambda x: x, [(outputs, targets)], LOSSES.build("squared_error"))
    assert (score.accuracy, score.images) == (None, 2)


def test_the_recipe_of_a_picture_set_refuses_population() -> None:
    with pytest.raises(RecipeError, match=r"training\.gradient: population takes model\.name: two"):
        check(Recipe, recipe({"training.gradient": "population"}), "here")
