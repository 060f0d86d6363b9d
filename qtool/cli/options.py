"""What commands share: options, how the text given for one is read, and how a command ends."""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec, TypeVar

import typer

from qtool.cli.completion import assignment, of_data, one_of
from qtool.errors import PredictionError, WriteError
from qtool.stopping import Stopped
from qtool.world.launched import launched

if TYPE_CHECKING:
    from qtool.reports.predictions import Prediction
    from qtool.reports.result import Result

R = TypeVar("R", bound="Result")
INTERRUPTED = 130

AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="auto, cpu, cuda, cuda:N or mps.",
        autocompletion=one_of(["auto", "cpu", "cuda", "mps"]),
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override one recipe key, as key=value; may be repeated.",
        autocompletion=assignment,
    ),
]
DataRoot = Annotated[
    Path | None, typer.Option("--data-root", help="Folder of the data sets; default: data.root.")
]
DataAssignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Give other data, as data.KEY=value; may be repeated.",
        autocompletion=of_data,
    ),
]
ConvertAssignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Of a recipe: override a key. Of a run: data.KEY=value.",
        autocompletion=assignment,
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        "--max-drop", help="Of a recipe: smallest file that loses no more points of accuracy."
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="Of a recipe: how it is improved untrained; default: default.",
        autocompletion=one_of(["default", "gptq", "adaround", "brecq"]),
    ),
]
CalibrationImages = Annotated[
    Path | None,
    typer.Option("--calibration-images", help="Of a recipe: folder of unlabelled images instead."),
]
RunCode = Annotated[
    bool, typer.Option("--run-code", help="Run your own code as a run folder keeps or names it.")
]
Seeds = Annotated[
    str | None,
    typer.Option(
        "--seeds", help="How many, or a list such as 1,2,3; default: 1, or the last of --looks."
    ),
]
SeedsOrLooks = Annotated[
    str | None,
    typer.Option(
        "--seeds", help="How many, or a list such as 1,2,3; default: 3, or the last of --looks."
    ),
]
Margin = Annotated[
    float,
    typer.Option("--margin", help="Points of accuracy within which arms count as equal."),
]
Looks = Annotated[
    str | None,
    typer.Option("--looks", help="Judge after so many seeds, as 3,5,10; stop once all is shown."),
]
Tune = Annotated[
    list[str] | None,
    typer.Option("--tune", help="Choose for each arm, by held-out images: KEY=0.3x,1x,3x."),
]
Explain = Annotated[
    bool,
    typer.Option("--explain", help="Look at gradients and activations after each epoch, too."),
]
SharedRecipe = Annotated[Path, typer.Argument(help="Recipe that all arms share.")]


NoReport = Annotated[
    bool, typer.Option("--no-report", help="Write no report.html, the page for people.")
]
Figure = Annotated[
    Path | None,
    typer.Option("--figure", help="Draw the main figure, too: a .pdf, .svg or .png file."),
]
ArmsCsv = Annotated[
    Path | None, typer.Option("--csv", help="Write a line for each arm, too, for spreadsheets.")
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", help="Trials at once, each in a process; default: one, in this."),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", help="Of each trial; default: 1 of several at once, or all."),
]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", help="Ray cluster that trains; without an address: a local one."),
]


def batch_size(value: str) -> int | None:
    """Return a fixed batch size, or None for a dynamic one."""
    if value == "dynamic":
        return None
    if not value.isdecimal() or int(value) < 1:
        why = f"{value!r} is not a number of images; give one, or dynamic"
        raise typer.BadParameter(why, param_hint="--batch")
    return int(value)


def counts_of(text: str, option: str, *, word: str = "", most: int | None = None) -> list[int]:
    """Return whole numbers from a list such as 1,2; 0 for `word`, where there is one."""
    parts = [part.strip() for part in text.split(",")]
    named = [bool(word) and part == word for part in parts]
    counted = [part.isdecimal() and 1 <= int(part) <= (most or int(part)) for part in parts]
    if not all(a or b for a, b in zip(named, counted, strict=True)):
        also = f", or {word}" if word else ""
        limits = "from 1" if most is None else f"from 1 to {most}"
        why = f"{text!r} is not a list of whole numbers {limits}, such as 1,2{also}"
        raise typer.BadParameter(why, param_hint=option)
    numbers = [0 if name else int(part) for part, name in zip(parts, named, strict=True)]
    return list(dict.fromkeys(numbers))


@contextmanager
def _on_standard_output() -> Iterator[None]:
    """Print a result inside.

    Raises:
        WriteError: If nobody takes it, or the disk that it goes to is full.
    """
    if sys.stdout is None:
        raise WriteError("standard output is closed, so the result is not shown")
    try:
        yield
        sys.stdout.flush()
    except (OSError, SystemExit) as error:
        broken = error.__context__ if isinstance(error, SystemExit) else error  # rich's way out
        if not isinstance(broken, OSError):
            raise
        with suppress(OSError, ValueError):  # else Python tries once more when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        why = broken.strerror or broken
        raise WriteError(f"standard output: the result cannot be written: {why}") from error


def present(result: "Result", *, as_json: bool) -> None:
    """Print a result: as JSON for scripts, or as a table for people.

    Raises:
        WriteError: If it cannot be written to standard output.
    """
    from qtool.reports.tables import show_result, warn_of

    with _on_standard_output():
        if as_json:
            typer.echo(json.dumps(result.to_json(), indent=2))
        else:
            show_result(result)
    if as_json:
        warn_of(result)


def present_prediction(result: "Prediction", *, as_json: bool) -> None:
    """Print classes of images, without loading the tables of all other results.

    Raises:
        PredictionError: If images could not be read; names them.
        WriteError: If the result cannot be written to standard output.
    """
    from qtool.reports.predictions import show_prediction

    present_by(show_prediction, result, as_json=as_json)
    if result.failed:
        images = f"{len(result.failed)} of {len(result.failed) + len(result.images)} images"
        named = [f"{failed.file}: {failed.why}" for failed in result.failed]
        raise PredictionError("\n  ".join([f"{images} could not be classified", *named]))


def present_by(show: Callable[[R], None], result: R, *, as_json: bool) -> None:
    """Print a result by its own face, without loading the tables of all others.

    Raises:
        WriteError: If the result cannot be written to standard output.
    """
    with _on_standard_output():
        if as_json:
            typer.echo(json.dumps(result.to_json(), indent=2))
        else:
            show(result)


def tell(message: str) -> None:
    """Say how a command ended, where there is still somebody to hear it."""
    with suppress(OSError):
        if sys.stderr is None or not sys.stderr.isatty():
            typer.echo(message, err=True)
            return
        from qtool.console import SCREEN, without_colours, wrapped

        text = wrapped(message, SCREEN.width)
        if without_colours():
            typer.echo(text, err=True)
        else:
            typer.secho(text, fg=typer.colors.RED, err=True)


def send_what_is_taken() -> None:
    """Let help come without colours where nobody wants them, and text in any encoding.

    What an encoding has no character for, such as a minus sign on a pipe of Windows, is a ?.
    """
    if os.environ.get("NO_COLOR"):
        os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


P = ParamSpec("P")


def refuse_of_integers(asked: Mapping[str, object]) -> None:
    """Refuse options of integer models, of those that were given, where none is made.

    Raises:
        BadParameter: Names the first of them.
    """
    if wrong := [option for option, given in asked.items() if given]:
        why = "makes an integer model; leave out --to straight_through"
        raise typer.BadParameter(why, param_hint=wrong[0])


def interruptible(command: Callable[P, None]) -> Callable[P, None]:
    """End a command with the exit code of the signal that stopped it; Typer itself would say 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (Stopped, ImportError) as error:
            # while a library is loaded, that makes an ImportError of it
            stopped = error.__cause__ if isinstance(error, ImportError) else error
            if not isinstance(stopped, Stopped):
                raise
            if launched().first:
                tell(f"ended by {stopped}")
            raise typer.Exit(stopped.exit_code) from None
        except KeyboardInterrupt:
            if launched().first:
                tell("interrupted")
            raise typer.Exit(INTERRUPTED) from None

    return wrapped
