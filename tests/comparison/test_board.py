"""How far trials are, as a terminal and as a file show it."""

import io
import json
import time

import pytest
from rich.console import Console

from qtool import console
from qtool.comparison.execution import board as boards
from qtool.comparison.execution.board import Progress, board
from qtool.comparison.execution.trials import Outcome
from qtool.reports.words import time_left
from tests.comparison.fake_trainings import summary_of, trials_of


def write_epochs(trial, count):
    trial.folder.path.mkdir(parents=True, exist_ok=True)
    trial.folder.metrics.write_text("{}\n" * count)


def shown(progress, width=80):
    out = Console(file=io.StringIO(), width=width, force_terminal=False)
    out.print(progress.table(width))
    return out.file.getvalue()


@pytest.fixture
def progress(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    trials = trials_of(tmp_path, "identity", "straight_through", seeds=(0, 1), epochs=4)
    made = Progress(trials)
    made.begins(trials[0])
    made.ends(Outcome(trials[0], summary_of(trials[0])))
    made.begins(trials[2])
    made.ends(Outcome(trials[2], summary_of(trials[2], "failed")))
    made.begins(trials[1])
    write_epochs(trials[1], 3)
    now = 130.0
    return made


def test_a_table_has_an_arm_in_each_row_and_a_seed_in_each_column(progress):
    lines = [line.split() for line in shown(progress).splitlines()]

    assert ["│", "identity", "│", "1.00", "%", "│", "3/4", "(10", "s)", "│"] in lines
    assert ["│", "straight_through", "│", "failed", "│", "│"] in lines
    assert "2 of 4 trials done, 1 of them failed; about" in str(progress)
    assert "2 of 4 trials done" in shown(progress)


def test_many_seeds_stand_in_one_cell(progress):
    lines = [line.split() for line in shown(progress, 45).splitlines()]
    assert ["│", "identity", "│", "1.00", "%,", "3/4", "(10", "s)", "│"] in lines


def test_time_left_goes_by_the_epochs_of_this_time_alone(tmp_path, monkeypatch):
    trials = trials_of(tmp_path, "a", "b", epochs=4)
    write_epochs(trials[0], 2)
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = Progress(trials)
    progress.begins(trials[0])
    assert progress.seconds_left() is None
    write_epochs(trials[0], 3)
    now = 110.0

    assert progress.seconds_left() == (1 + 4) * 10.0
    assert str(progress) == "0 of 2 trials done; about 50 s left"


def test_a_time_is_said_as_people_say_it():
    assert [time_left(s) for s in (3, 59, 61, 1500, 7500)] == [
        "3 s",
        "59 s",
        "1 min",
        "25 min",
        "2 h 5 min",
    ]


def test_a_terminal_shows_warnings_of_trials_above_the_table_and_nothing_else(
    tmp_path, monkeypatch
):
    screen = console._Screen(
        file=io.StringIO(), force_terminal=True, width=80, color_system=None, highlight=False
    )
    for place in (console, boards):
        monkeypatch.setattr(place, "SCREEN", screen)
    (trial,) = trials_of(tmp_path, "a")
    with board([trial]) as seen:
        seen.begins(trial)
        seen.hears(trial, "epoch 1/1  train loss 2.3")
        seen.hears(trial, "WARNING: the data have changed")
        seen.ends(Outcome(trial, summary_of(trial)))
    said = screen.file.getvalue()

    assert "WARNING: a, seed 0: the data have changed" in said
    assert "1 of 1 trials done" in said
    assert "train loss" not in said


def test_json_lines_are_epochs(tmp_path):
    (trial,) = trials_of(tmp_path, "a", epochs=2)
    assert boards.epochs_done(trial) == 0
    trial.folder.path.mkdir(parents=True)
    trial.folder.metrics.write_text(json.dumps({"epoch": 1}) + "\n")
    assert (boards.epochs_done(trial), boards.epochs_of(trial)) == (1, 2)
