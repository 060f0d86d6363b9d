"""Trials: in which order they run, where they lie, and what is made of their outcomes."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from qtool.comparison.execution.executors import run_trials
from qtool.comparison.execution.trials import ComparisonFolder, Outcome, TrainTrial, Trial
from qtool.comparison.judged import summarize_trials
from qtool.errors import InputError
from qtool.recipe import load_recipe
from qtool.reports.results import Summary
from qtool.runs.kept.folder import RunFolder

RECIPE = {
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "image_size": 16, "train_samples": 64},
    "quantization": {
        "weights": {"bits": 4, "estimator": {"name": "sinusoidal", "amplitude": 0.25}},
        "overrides": [{"match": ["fc*"], "weights": None}],
    },
    "training": {"epochs": 1, "learning_rate": 0.1},
}
NOWHERE = RunFolder(Path("nowhere"))


def summary(accuracy, status="finished"):
    figures = dict.fromkeys(("validation_loss", "train_accuracy", "train_loss"))
    about = {"run": "r", "epochs": 1, "seconds": 0.0, "parameters": 1, "weight_bits_mean": 4.0}
    return Summary(status=status, validation_accuracy=accuracy, **about, **figures)


def outcomes(**summaries):
    """Outcomes of arms, whose trials have the seeds 0, 1, ..."""
    return {
        arm: [Outcome(Trial(arm, seed, None, NOWHERE), said) for seed, said in enumerate(done)]
        for arm, done in summaries.items()
    }


def summarized(**summaries):
    return summarize_trials(outcomes(**summaries), kind="estimators", recipe="r.yaml", on="weights")


def trial_of(folder, **changes):
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return ComparisonFolder(folder / "c").trial("sinusoidal", load_recipe(path))


def test_trials_run_seed_by_seed_each_in_a_folder_of_its_own(capsys):
    ran = []

    def train(trial):
        ran.append((trial.recipe.name, trial.folder.path))
        return summary(0.5)

    folder, training = ComparisonFolder(Path("c")), SimpleNamespace(epochs=1)
    trials = [
        Trial(
            arm, seed, SimpleNamespace(name=f"{arm}{k}", training=training), folder.run(arm, seed)
        )
        for arm in ("a", "b")
        for k, seed in enumerate((3, 4))
    ]
    found = run_trials(trials, train)

    assert ran == [
        ("a0", Path("c/a/seed-3")),
        ("b0", Path("c/b/seed-3")),
        ("a1", Path("c/a/seed-4")),
        ("b1", Path("c/b/seed-4")),
    ]
    assert {name: len(done) for name, done in found.items()} == {"a": 2, "b": 2}
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "trial 1/4: a, seed 3",
        "trial 2/4: b, seed 3",
        "trial 3/4: a, seed 4",
        "trial 4/4: b, seed 4",
    ]


def test_outcomes_stand_by_arm_and_seed_whatever_the_order_they_come_in():
    trials = [Trial(arm, seed, None, None) for arm in ("b", "a") for seed in (7, 2)]
    accuracies = {("b", 7): 0.1, ("b", 2): 0.2, ("a", 7): 0.3, ("a", 2): 0.4}

    def backwards(trials, train):
        return [Outcome(trial, train(trial)) for trial in reversed(trials)]

    found = run_trials(trials, lambda trial: summary(accuracies[trial.arm, trial.seed]), backwards)

    assert list(found) == ["b", "a"]
    assert [each.accuracy for each in found["b"]] == [0.1, 0.2]
    assert [each.accuracy for each in found["a"]] == [0.3, 0.4]


def test_a_trial_without_an_accuracy_has_not_failed():
    result = summarized(a=[summary(None)], b=[summary(None)])

    assert [arm.failed for arm in result.arms] == [0, 0]
    assert "no seed has an accuracy in both" in result.verdict


def test_a_failed_trial_is_counted_and_left_out_of_the_mean():
    result = summarized(a=[summary(0.9), summary(0.8)], b=[summary(0.1, "failed"), summary(0.7)])
    a, b = result.arms

    assert (a.values, a.failed) == ([0.9, 0.8], 0)
    assert (b.values, b.mean, b.failed) == ([None, 0.7], 0.7, 1)
    assert result.differences[0].arm == "b"
    assert result.differences[0].against == "a"
    assert result.kind == "estimators"
    assert result.seeds == [0, 1]
    assert "too few seeds" in result.verdict


def test_the_report_has_its_keys_in_the_order_of_the_contract():
    said = summarized(a=[summary(0.9)], b=[summary(0.8)]).to_json()

    before = ["kind", "recipe", "seeds", "arms", "differences", "verdict", "on"]
    more = ["margin", "looks", "without_answers", "threads", "failed_trials"]
    assert list(said) == before + more
    assert [list(arm) for arm in said["arms"]] == [["name", "values", "mean", "std", "failed"]] * 2
    keys = ["arm", "against", "mean", "low", "high", "pairs", "p_value", "confidence", "images"]
    keys += ["std", "freedom", "by_images", "new_low", "new_high", "margin", "equal_low"]
    keys += ["equal_high", "equal", "detectable", "seeds_needed", "arm_only", "against_only"]
    keys += ["mcnemar_p"]
    assert [list(item) for item in said["differences"]] == [keys]


def test_a_trial_pickles_and_so_does_what_trains_one(tmp_path):
    trial = trial_of(tmp_path)
    again, train = pickle.loads(pickle.dumps((trial, TrainTrial(torch.device("cpu")))))

    assert again == trial
    assert again.recipe.as_dict() == trial.recipe.as_dict()
    assert (again.arm, again.seed) == ("sinusoidal", 0)
    assert again.folder == RunFolder(tmp_path / "c" / "sinusoidal" / "seed-0")
    assert train(again).status == "finished"
    assert trial.folder.summary.is_file()


def test_a_trial_that_diverges_has_an_outcome(tmp_path, capsys):
    rates = {"epochs": 1, "learning_rate": 1e30}
    found = run_trials([trial_of(tmp_path, training=rates)], TrainTrial(torch.device("cpu")))
    (outcome,) = found["sinusoidal"]

    assert (outcome.finished, outcome.accuracy) == (False, None)
    assert outcome.summary.status == "failed"
    assert f"trial failed: {outcome.summary.error}" in capsys.readouterr().err


def test_a_comparison_does_not_lie_in_a_run(tmp_path):
    RunFolder(tmp_path).recipe.write_text("seed: 0")
    with pytest.raises(InputError, match="holds a run; choose another --output for the compar"):
        ComparisonFolder(tmp_path).refuse_unless_usable()
