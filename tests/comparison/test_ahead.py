"""Workers that load before trials are known: taken once, by who would have started the same."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtool.comparison.execution import ahead
from qtool.comparison.execution.ahead import end_ahead, load_ahead, take, usual_folder
from tests.kit import shell


class Process:
    """A double of a worker.

    Args:
        environment: that it was started in.
    """

    stdin = stdout = stderr = None

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment, self.code = environment, None

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        self.code = -9

    def wait(self) -> None:
        assert self.code is not None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Process]]:
    """Return all workers that are started, which are doubles; none is left ahead."""
    every: list[Process] = []

    def popen(argv: list[str], *, env: dict[str, str], **_: object) -> Process:
        assert argv[-1] == "qtool.comparison.execution.worker"
        every.append(Process(env))
        return every[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    yield every
    end_ahead()


def test_those_that_load_are_taken_before_any_other_is_started(
    started: list[Process], tmp_path: Path
) -> None:
    load_ahead(2, None, tmp_path / "c")
    assert [each.environment["OMP_NUM_THREADS"] for each in started] == ["1", "1"]
    first, second = started
    assert [take(1), take(1)] == [first, second]
    assert take(1) is started[2]
    assert not any(each.code for each in started)


def test_what_was_started_in_another_environment_or_has_ended_is_not_taken(
    started: list[Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_ahead(3, 1, tmp_path / "c")
    started[0].code = 1
    assert take(1) is started[1]
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    assert take(1) is started[3]
    assert started[2].code == -9
    assert str(tmp_path) in started[3].environment["PYTHONPATH"].split(os.pathsep)
    load_ahead(1, 2, tmp_path / "c")
    end_ahead()
    assert started[4].code == -9
    assert take(2) is started[5]


@pytest.mark.parametrize(("jobs", "threads"), [(None, None), (1, None), (0, 1), (2, 0)])
def test_nothing_loads_that_may_not_be_taken(
    jobs: int | None, threads: int | None, started: list[Process], tmp_path: Path
) -> None:
    load_ahead(jobs, threads, tmp_path / "c")
    load_ahead(2, 1, tmp_path)  # it is there: all trials may be done
    assert started == []
    load_ahead(100, None, tmp_path / "c")
    assert len(started) == 4  # processors


def test_a_command_starts_them_once_its_recipe_may_be_one(
    started: list[Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: {name: lenet5}\n")
    argv = ["compare", "estimators", str(recipe), "--jobs", "2"]
    assert shell(*argv)[0] == 2
    assert started == []
    monkeypatch.setattr("qtool.recipe.early.refuse_wrong_words", lambda *_: None)
    assert shell(*argv)[0] == 2  # the recipe is as wrong as before
    assert len(started) == 2
    assert ahead.usual_folder(recipe, "estimators") == Path("runs/r-estimators")
    usual_folder(recipe, "estimators").mkdir(parents=True)
    assert shell(*argv)[0] == 2
    assert len(started) == 2
