"""What people see of qtool: the help of every command, and a table of every kind of result.

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
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = HERE / "results"  # what commands have written
WIDTH = 100


def seen(show: Callable[[], object]) -> str:
    """Return all that a function prints, without blanks at the ends of lines."""
    screen = io.StringIO()
    with redirect_stdout(screen), redirect_stderr(screen), suppress(SystemExit):
        show()
    return "".join(f"{line.rstrip()}\n" for line in screen.getvalue().rstrip().splitlines())


def help_texts() -> Iterator[tuple[str, str]]:
    """Yield the help of the program and of every command, each with the name of its file."""
    import typer

    from qtool.cli import app, main

    whole: Any = typer.main.get_command(app)
    names = ["", *whole.commands]
    for name, command in whole.commands.items():
        names += [f"{name} {inner}" for inner in getattr(command, "commands", ())]
    for name in names:
        words = name.split()
        yield f"help/{'-'.join(['qtool', *words])}.txt", seen(partial(main, [*words, "--help"]))


def tables() -> Iterator[tuple[str, str]]:
    """Yield the table of every kept result, each with the name of its file."""
    from qtool.reports import tables as faces

    shown: dict[str, Callable[[Any], None]] = {
        "plan": lambda rows: faces.show_plan([SimpleNamespace(**row) for row in rows]),
        "summary": faces.show_summary,
        "convert": faces.show_conversion,
        "export": faces.show_export,
        "comparison": faces.show_comparison,
        "equivalence": faces.show_equivalence,
        "runs": faces.show_runs,
        "straight": faces.show_straight_through,
        "inspection": faces.show_inspection,
        "estimators": faces.show_estimators,
    }
    for path in sorted(RESULTS.glob("*.json")):
        result, show = json.loads(path.read_text()), shown[path.stem.split("_")[0]]
        yield f"tables/{path.stem}.txt", seen(partial(show, result))


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
    paths = sorted(path for folder in ("help", "tables") for path in (HERE / folder).glob("*"))
    return {str(path.relative_to(HERE)): path.read_text() for path in paths}


if __name__ == "__main__":
    sys.argv[0] = "qtool"  # which help texts name
    texts = dict([*help_texts(), *tables()])
    sys.stdout.write(json.dumps([texts, sorted(sys.modules)]))
