"""Outcomes judged: by images where they are known, look by look."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from qtool.comparison.execution.trials import Outcome, Trial
from qtool.comparison.judged import (
    Judging,
    judge,
    looks_before,
    looks_with,
    stages,
    summarize_trials,
)
from qtool.errors import InputError
from qtool.reports.comparisons import Look
from qtool.reports.results import Summary
from qtool.runs.kept.answers import Answers
from qtool.runs.kept.folder import RunFolder
from tests.comparison.test_statistics import drawn
from tests.comparison.test_trials import summary


def trained(folder: Path, arm: str, seed: int, right: np.ndarray, images: str = "x") -> Outcome:
    """Write what a trial leaves, and return its outcome."""
    place = RunFolder(folder / arm / f"seed-{seed}")
    labels = torch.zeros(len(right), dtype=torch.long)
    Answers.of(torch.from_numpy(~right).long(), labels, images).write(place.answers)
    said: Summary = summary(float(right.mean()))
    said.write(place.summary)
    return Outcome(Trial(arm, seed, None, place), said)


def two_arms(folder: Path, seeds: int, better: int = 0) -> dict[str, list[Outcome]]:
    random = np.random.default_rng(0)
    a, b = drawn(random, seeds, 500), drawn(random, seeds, 500)
    a[:, :better] = False
    pairs = (("base", a), ("other", b))
    return {arm: [trained(folder, arm, k, r) for k, r in enumerate(own)] for arm, own in pairs}


def test_arms_are_judged_by_their_images(tmp_path: Path) -> None:
    found = judge(two_arms(tmp_path, 3, better=40))

    assert found.without_answers == []
    assert (found.differences[0].images, found.differences[0].by_images) == (500, True)
    assert found.differences[0].low is not None
    assert found.differences[0].low > 0


@pytest.mark.parametrize("missing", ["absent", "damaged", "of other images"])
def test_a_trial_without_answers_is_named_and_its_arm_judged_by_accuracies(
    missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = two_arms(tmp_path, 3)
    path = outcomes["other"][1].trial.folder.answers
    if missing == "absent":
        path.unlink()
    elif missing == "damaged":
        path.write_bytes(b"PK")
    else:
        right = np.unpackbits(np.load(path)["right"], count=500).astype(bool)
        trained(tmp_path, "other", 1, right, images="y")
    result = summarize_trials(outcomes, kind="estimators", recipe="r.yaml", on="weights")

    assert result.without_answers == ["other, seed 1"]
    assert result.differences[0].images is None
    assert result.verdict.endswith("validation.npz is missing or of others: other, seed 1.")
    assert ("damaged" in capsys.readouterr().err) == (missing == "damaged")


def test_a_first_look_is_planned_and_seeds_added_later_are_not(tmp_path: Path) -> None:
    outcomes = two_arms(tmp_path, 5)
    few = {arm: done[:3] for arm, done in outcomes.items()}

    def look(some: dict[str, list[Outcome]], before: list[Look]) -> tuple[list[Look], str]:
        found = summarize_trials(
            some, kind="estimators", recipe="r.yaml", on="weights", before=before
        )
        return found.looks, found.verdict

    first, said = look(few, [])
    assert [(one.seeds, one.planned, one.alpha) for one in first] == [([0, 1, 2], True, 0.05)]
    assert "look" not in said
    again, _ = look(few, first)
    assert again == first
    later, said = look(outcomes, first)
    assert [one.planned for one in later] == [True, False]
    assert later[0] == first[0]
    assert "This is an unplanned look, as the comparison was judged before on 3 seeds" in said
    assert "here in 8 % of comparisons; plan it with --looks 3,5." in said
    repeated, _ = look(outcomes, later)
    assert repeated == later


def test_planned_looks_share_the_level(tmp_path: Path) -> None:
    outcomes = two_arms(tmp_path, 5)
    judging, looks = Judging(looks=(3, 5)), list[Look]()
    for count in judging.looks:
        some = {arm: done[:count] for arm, done in outcomes.items()}
        result = summarize_trials(
            some, kind="estimators", recipe="r", on="weights", judging=judging, before=looks
        )
        looks = result.looks
    assert [one.planned for one in looks] == [True, True]
    limit = stats.norm.isf(looks[0].alpha / 2)
    both = stats.multivariate_normal(cov=[[1, 0.6**0.5], [0.6**0.5, 1]])
    inside = both.cdf([limit, limit], lower_limit=[-limit, -limit])
    assert inside == pytest.approx(0.95, abs=1e-4)
    assert result.differences[0].confidence == pytest.approx(1 - looks[0].alpha)
    assert "Look 2 of 2 planned ones, at 5 seeds: each has level 0.0307." in result.verdict


def test_stages_hold_the_first_seeds_of_all_arms() -> None:
    trials = [Trial(arm, seed, None, RunFolder(Path())) for arm in "ab" for seed in (4, 5, 6)]
    found = stages(trials, (2, 3))
    assert [(trial.arm, trial.seed) for trial in found[0]] == [
        ("a", 4), ("a", 5), ("b", 4), ("b", 5),
    ]  # fmt: skip
    assert found[1] == trials
    assert stages(trials, ()) == [trials]
    with pytest.raises(InputError, match=r"--looks 2,5: the last one is at all seeds, and --seeds"):
        stages(trials, (2, 5))


@pytest.mark.parametrize(
    ("margin", "looks", "says"),
    [
        (0.0, (), r"--margin 0: give points of accuracy"),
        (1.0, (), r"--margin 100: "),
        (0.005, (5, 3), r"--looks 5,3: give rising numbers of seeds"),
        (0.005, (1, 3), r"--looks 1,3: "),
        (0.005, (3, 3), r"--looks 3,3: "),
    ],
)
def test_wrong_margins_and_looks_are_refused(
    margin: float, looks: tuple[int, ...], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        Judging(margin, looks)


def test_looks_of_a_damaged_comparison_are_none(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    assert looks_before(path) == []
    path.write_text('{"looks": [{"seeds": "x"}]}')
    assert looks_before(path) == []
    look = Look(seeds=[0], alpha=0.05, planned=True, verdict="v")
    assert looks_with(look, [look]) == [look]
