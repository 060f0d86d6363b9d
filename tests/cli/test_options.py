"""What commands share: how a result is printed, and how a command ends that is stopped."""

import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import pytest
import typer

from qtool.cli import main
from qtool.cli.options import interruptible, present, present_by, present_prediction, tell
from qtool.errors import PredictionError, WriteError
from qtool.reports.comparisons import FailedTrial
from qtool.reports.predictions import Prediction
from qtool.reports.results import Summary
from qtool.stopping import Stopped
from tests.reports.pages import comparison, summary

FAILED = Prediction.model_validate(
    {"model": "m", "images": [], "failed": [{"file": "a.png", "why": "it is no image"}]}
)


def shown(result: Summary) -> None:
    sys.stdout.write(f"{result.run} is {result.status}\n")


def test_a_result_is_one_json_object_or_its_face(capsys: pytest.CaptureFixture[str]) -> None:
    result = summary(0.5)
    present(result, as_json=True)
    assert json.loads(capsys.readouterr().out) == result.to_json()
    present_by(shown, result, as_json=True)
    assert json.loads(capsys.readouterr().out) == result.to_json()
    present_by(shown, result, as_json=False)
    assert capsys.readouterr().out == "run is finished\n"


def test_warnings_of_json_are_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    failed = FailedTrial(arm="a", seed=3, error="it died")
    present(comparison().model_copy(update={"failed_trials": [failed]}), as_json=True)
    said = capsys.readouterr()
    assert "WARNING: a, seed 3 failed: it died" in said.err
    assert json.loads(said.out)["failed_trials"] == [failed.to_json()]


def test_images_that_could_not_be_read_are_named_after_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(
        PredictionError, match=r"^1 of 1 images could not be .*\n  a\.png: it is no"
    ):
        present_prediction(FAILED, as_json=True)
    assert json.loads(capsys.readouterr().out) == FAILED.to_json()


class Full(io.StringIO):
    """A standard output on a disk that is full, with a file of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.end, self.other = os.pipe()

    def write(self, text: str) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fileno(self) -> int:
        return self.other


@pytest.mark.parametrize(
    "show",
    [
        lambda: present(summary(0.5), as_json=True),
        lambda: present_by(shown, summary(0.5), as_json=False),
        lambda: present_prediction(FAILED, as_json=True),
    ],
    ids=["any result", "its own face", "a prediction"],
)
def test_a_result_that_cannot_be_written_is_an_error_and_standard_output_is_let_go(
    show: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Full()
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(WriteError, match=r"^standard output: the result .*: No space left on dev"):
        show()
    os.write(full.fileno(), b"goes nowhere now, and fails no more")
    os.close(full.other)
    assert os.read(full.end, 1) == b""
    os.close(full.end)
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(WriteError, match="standard output is closed, so the result is not shown"):
        show()


def test_a_program_s_own_end_is_no_error_of_standard_output() -> None:
    def ends(result: Summary) -> NoReturn:
        raise SystemExit(3)

    with pytest.raises(SystemExit) as ended:
        present_by(ends, summary(0.5), as_json=False)
    assert ended.value.code == 3


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (Stopped(signal.SIGTERM), 143, "ended by SIGTERM"),
        (Stopped(signal.SIGHUP), 129, "ended by SIGHUP"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_signal_is_the_exit_code_and_the_first_process_says_it(
    raised: BaseException,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @interruptible
    def command() -> None:
        raise raised

    for rank, words in (("0", f"{said}\n"), ("1", "")):
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(typer.Exit) as ended:
            command()
        assert ended.value.exit_code == code
        assert capsys.readouterr().err == words


def test_where_nobody_hears_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    tell("interrupted")


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--match", "beta", "'beta' is not alpha"),
        ("--on", "biases", "'biases' is neither weights nor activations"),
        ("--keep", "all", "'all' is neither none nor last"),
    ],
)
def test_a_word_that_is_no_choice_is_refused_in_words_of_qtool_s_own(
    option: str, value: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", "estimators", "r.yaml", option, value])
    assert ended.value.code == 2
    assert why in " ".join(capsys.readouterr().err.split())
