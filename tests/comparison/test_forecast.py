"""What is said before a comparison starts."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qtool import pipeline
from qtool.comparison import forecast
from qtool.comparison.execution.plan import Execution
from qtool.comparison.execution.trials import Trial
from qtool.comparison.forecast import Timed, assumed_std, say_forecast
from qtool.comparison.judged import Judging
from qtool.comparison.statistics.power import limits_of_comparison, power
from qtool.recipe import load_recipe
from qtool.runs.access import OWN
from qtool.runs.kept.folder import RunFolder
from tests.comparison.test_judged import trained
from tests.comparison.test_statistics import drawn
from tests.kit import write_recipe

CPU = torch.device("cpu")
Said = Callable[..., str]


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Said:
    """Return what is said of two arms and three seeds, of which some are done."""

    def of(
        done: int = 0, *, jobs: int | None = None, looks: tuple[int, ...] = (), epochs: int = 1
    ) -> str:
        recipe = load_recipe(write_recipe(tmp_path, {"training.epochs": epochs}))
        random = np.random.default_rng(0)
        trials = list[Trial]()
        for arm in "ab":
            for seed in range(3):
                if seed < done:
                    trained(tmp_path, arm, seed, drawn(random, 1, 500)[0])
                place = RunFolder(tmp_path / arm / f"seed-{seed}")
                trials.append(Trial(arm, seed, recipe, place))
        say_forecast(trials, Execution(jobs), CPU, OWN, Judging(looks=looks))
        return capsys.readouterr().err

    return of


def test_a_short_training_is_not_timed(said: Said) -> None:
    text = said()
    assert "6 trainings, 2 arms x 3 seeds; how long they take is known after the first" in text
    assert "as assumed of networks of 96 % on 500 images" in text


def test_what_would_be_found_is_found_four_times_in_five(said: Said) -> None:
    text = said()
    match = re.search(r"difference of ([\d.]+) points from a .* differ by ([\d.]+) points", text)
    assert match
    effect, std = (float(number) / 100 for number in match.groups())
    # 0.9 points on 500 images is what LeNet-5 had on digits; the sentence has one decimal
    assert std == pytest.approx(assumed_std(500), abs=5e-5)
    limits = limits_of_comparison(std, 3, std**2 / 1.4)
    assert power(effect * 3**0.5 / std, limits) == pytest.approx(0.8, abs=0.03)


def test_several_at_once_take_less_time(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "time_of", lambda *_: Timed(100.0, "50 ms a step"))
    assert "2 arms x 3 seeds; about 10 min left, by 50 ms a step" in said()
    assert "2 arms x 3 seeds; about 5 min left, by 50 ms a step" in said(jobs=2)


def test_trials_that_are_done_tell_more_than_assumptions(said: Said) -> None:
    text = said(2)
    assert re.search(r"2 arms x 3 seeds, 4 of them done; about [0.]+ s left, by those", text)
    assert "as those that are done do" in text
    everything = said(3)
    assert "6 of them done\n" in everything
    assert "would be found" not in everything


def test_a_step_is_timed_and_nothing_else_changes(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_rng_state()
    text = said(epochs=10)
    assert re.search(r"about [\d.]+ s left, by \d+ ms a step", text)
    assert torch.equal(torch.get_rng_state(), before)

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("qtool.training.step.TrainingStep.__call__", fails)
    assert "how long they take is known after the first" in said(epochs=10)


def test_a_comparison_begins_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = pipeline.compare_estimators(
        write_recipe(tmp_path),
        names=["straight_through", "identity"],
        on="weights",
        looks=[2, 3],
        output=tmp_path / "c",
        device="cpu",
    )
    err = capsys.readouterr().err
    assert err.index("6 trainings, 2 arms x 3 seeds") < err.index("trial 1/")
    counts = [len(look.seeds) for look in result.looks]
    assert counts in ([2], [2, 3])
    assert len(result.seeds) == counts[-1]
    assert result.differences[0].images == 500
    assert result.without_answers == []
