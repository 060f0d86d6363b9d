"""How a command ends: with its result shown, or interrupted."""

import functools
import json
from collections.abc import Callable
from typing import Any, ParamSpec

import typer

INTERRUPTED = 130


def present(result: dict[str, Any], as_json: bool, show: Callable[[dict[str, Any]], None]) -> None:
    """Print a result: as JSON for scripts, or as a table for people."""
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        show(result)


P = ParamSpec("P")


def interruptible(command: Callable[P, None]) -> Callable[P, None]:
    """End a command with exit code 130 on Ctrl-C, where Typer itself would say 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.secho("interrupted", fg=typer.colors.RED, err=True)
            raise typer.Exit(INTERRUPTED) from None

    return wrapped
