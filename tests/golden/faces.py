"""What people see of qtool: the help of every command, tables and schemas of all results.

Run as a program, in an environment of its own, it prints all of it as JSON.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any

import typer

from qtool.cli import app, main
from qtool.reports.comparisons import Comparison, Equivalence
from qtool.reports.inspections import EstimatorTable, Inspection, PlanRow
from qtool.reports.predictions import Prediction
from qtool.reports.result import Result
from qtool.reports.results import Conversion, EpochLine, Export, StraightThrough, Summary
from qtool.reports.sensitivity import Sensitivity
from qtool.reports.tables import show_plan, show_result

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = HERE / "results"  # what commands have written
FOLDERS = ("help", "tables", "schemas")  # of texts
WIDTH = 100
KINDS: dict[str, type[Result]] = {  # by what kept results are called
    "summary": Summary,
    "summary_without_profile": Summary,
    "epoch_line": EpochLine,
    "convert": Conversion,
    "straight_through": StraightThrough,
    "export": Export,
    "prediction": Prediction,
    "comparison": Comparison,
    "runs": Comparison,
    "equivalence": Equivalence,
    "inspection": Inspection,
    "estimators": EstimatorTable,
    "plan": PlanRow,
    "sensitivity": Sensitivity,
}


def seen(show: Callable[[], object]) -> str:
    """Return all that a function prints, without blanks at the ends of lines."""
    screen = io.StringIO()
    with redirect_stdout(screen), redirect_stderr(screen), suppress(SystemExit):
        show()
    return "".join(f"{line.rstrip()}\n" for line in screen.getvalue().rstrip().splitlines())


def help_texts() -> Iterator[tuple[str, str]]:
    """Yield the help of the program and of every command, each with the name of its file."""
    whole: Any = typer.main.get_command(app)
    names = ["", *whole.commands]
    for name, command in whole.commands.items():
        names += [f"{name} {inner}" for inner in getattr(command, "commands", ())]
    for name in names:
        words = name.split()
        yield f"help/{'-'.join(['qtool', *words])}.txt", seen(partial(main, [*words, "--help"]))


def results() -> Iterator[tuple[str, list[Result]]]:
    """Yield every kept file of results, its name without the ending, and what it holds."""
    for path in sorted(RESULTS.glob("*.json")):
        kept = json.loads(path.read_text())
        kind = KINDS[path.stem.split("_of_")[0]]
        yield path.stem, [kind.of(row, path) for row in (kept if kind is PlanRow else [kept])]


def tables() -> Iterator[tuple[str, str]]:
    """Yield the table of every kept result that has one, each with the name of its file."""
    for name, rows in results():
        if name == "plan":
            text = seen(partial(show_plan, rows))
        elif name == "epoch_line":
            continue  # a line of progress, in training
        else:
            text = seen(partial(show_result, rows[0]))
        yield f"tables/{name}.txt", text


def schemas() -> Iterator[tuple[str, str]]:
    """Yield the JSON schema of every kind of result, each with the name of its file."""
    for kind in dict.fromkeys(KINDS.values()):
        text = json.dumps(kind.model_json_schema(), indent=2)
        yield f"schemas/{kind.__name__}.schema.json", f"{text}\n"


def now() -> tuple[dict[str, str], set[str]]:
    """Return every text of today by the name of its file, and what showing them had to import."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONUTF8": "1",
        "COLUMNS": str(WIDTH),
    }
    ended = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=True
    )
    texts, imported = json.loads(ended.stdout)
    return texts, set(imported)


def kept() -> dict[str, str]:
    """Return every golden text by the name of its file."""
    paths = sorted(path for folder in FOLDERS for path in (HERE / folder).glob("*"))
    return {str(path.relative_to(HERE)): path.read_text() for path in paths}


if __name__ == "__main__":
    sys.argv[0] = "qtool"  # which help texts name
    texts = dict([*help_texts(), *tables(), *schemas()])
    sys.stdout.write(json.dumps([texts, sorted(sys.modules)]))
