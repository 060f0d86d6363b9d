"""What a run shows while it trains: a line for each epoch, and a status on a terminal."""

import io
import time

import pytest

from qtool import console
from qtool.reports.results import EpochLine
from qtool.training import progress
from qtool.training.progress import epoch_text, one_of_several, progress_bar

LINE = EpochLine(
    epoch=3,
    step=24,
    train_loss=2.3723,
    train_accuracy=0.1270,
    validation_loss=2.4349,
    validation_accuracy=0.1580,
    learning_rate=0.1,
    seconds=11.14,
)
HELD_OUT = LINE.model_copy(
    update={
        "validation_loss": None,
        "validation_accuracy": None,
        "holdout_loss": 2.5,
        "holdout_accuracy": 0.2,
    }
)
BLENDED = LINE.model_copy(update={"alpha": 0.25, "blended_validation_accuracy": 0.5})
TAUGHT = LINE.model_copy(update={"label_loss": 3.0, "distillation_loss": 1.5})
WITHOUT = LINE.model_copy(update={"train_accuracy": None, "validation_accuracy": None})


@pytest.mark.parametrize(
    ("line", "epochs", "width", "text"),
    [
        (
            LINE,
            8,
            80,
            "epoch 3/8  loss 2.372 train, 2.435 validation  accuracy 12.7 %, 15.8 %  11.1 s",
        ),
        (
            LINE,
            100,
            80,
            "epoch   3/100  loss 2.372 train, 2.435 validation  accuracy 12.7 %, 15.8 %",
        ),
        (LINE, 8, 64, "epoch 3/8  loss 2.372 train, 2.435 validation  accuracy 15.8 %"),
        (
            HELD_OUT,
            8,
            None,
            "epoch 3/8  loss 2.372 train, 2.500 hold-out  accuracy 12.7 %, 20.0 %  11.1 s",
        ),
        (
            TAUGHT,
            8,
            None,
            "epoch 3/8  loss 2.372 mixed, 2.435 validation  accuracy 12.7 % train, 15.8 % "
            "validation  11.1 s",
        ),
        (
            BLENDED,
            8,
            None,
            "epoch 3/8  loss 2.372 train, 2.435 validation  "
            "accuracy 12.7 % train, 15.8 % validation, 50.0 % blended  alpha 0.250  11.1 s",
        ),
        (WITHOUT, 8, None, "epoch 3/8  loss 2.372 train, 2.435 validation  11.1 s"),
    ],
)
def test_an_epoch_is_one_line_and_says_accuracy_once(
    line: EpochLine, epochs: int, width: int | None, text: str
) -> None:
    assert epoch_text(line, epochs, width) == text


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests set."""
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return clock


def terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> io.StringIO:
    """Return what a terminal of this width is sent from now on."""
    out = io.StringIO()
    screen = console._Screen(file=out, force_terminal=True, width=width, color_system=None)
    for place in (console, progress):
        monkeypatch.setattr(place, "SCREEN", screen)
    return out


def test_a_status_says_the_time_left_of_the_run_and_is_taken_away(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = terminal(monkeypatch, 80)
    with progress_bar(steps=10, epochs=4, done=10) as bar:
        now[0] += 20.0
        bar.step(20, 0.5, 0.75, 1234.0)  # ten of the thirty steps that were left, in 20 s
    drawn = out.getvalue().split("\r")

    assert drawn[1] == ("epoch 2/4   50 %  40 s left  loss 0.500, accuracy 75.0 %  1,234 images/s")
    assert drawn[2:] == [" " * len(drawn[1]), ""]
    assert "\x1b" not in out.getvalue()


def test_a_status_beside_others_says_how_far_all_are_and_fits_its_line(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    for width in range(10, 130):
        out = terminal(monkeypatch, width)
        with one_of_several(lambda: "trial 2/6, 3 min in all"), progress_bar(10, 4, 0) as bar:
            now[0] += 1.0
            bar.step(1, 0.5, None, 10.0)
        drawn = out.getvalue().split("\r")[1]
        assert len(drawn) < width
        words = "epoch 1/4    2 %  39 s left  trial 2/6, 3 min in all  loss 0.500  10 images/s  ["
        assert words.startswith(drawn) or drawn.startswith(words)


def test_a_line_that_is_said_takes_the_place_of_the_status(
    now: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = terminal(monkeypatch, 80)
    with progress_bar(10, 4, 0) as bar:
        now[0] += 1.0
        bar.step(1, 0.5, None, 10.0)
        console.say("note: something")
    drawn = out.getvalue().split("\r")

    assert drawn[-1] == "note: something\n"
    assert not drawn[-2].strip()


def test_nothing_is_drawn_off_a_terminal(now: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(console, "SCREEN", console._Screen(file=out))
    with progress_bar(10, 4, 0) as bar:
        now[0] += 1.0
        bar.step(1, 0.5, None, 10.0)
    assert out.getvalue() == ""
