"""The command that tells what a file, a run or a comparison holds, and draws it."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.first import look_at_anything, look_at_repair
from qtool.cli.options import AsJson, RunCode, interruptible, present


@interruptible
def inspect(
    source: Annotated[
        Path,
        typer.Argument(
            help="Recipe, run, comparison, result (JSON), model or file of weights; or estimators."
        ),
    ],
    *,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="Of a run, comparison or estimators: a page NAME.html to draw."
        ),
    ] = None,
    repair: Annotated[
        Path | None,
        typer.Option(
            "--repair", help="Of an ONNX file that tools rewrote: annotate and pack it again."
        ),
    ] = None,
    run_code: RunCode = False,
    as_json: AsJson = False,
) -> None:
    """Print what a file or run holds: layers, bits, scales, bytes, results; lint ONNX files.

    Of a run or a comparison --output draws a page; with the word estimators: print every gradient
    estimator, or with --output draw them, into a page or a folder.

    Example: qtool inspect recipes/digits.yaml
    """
    of_estimators = str(source) == "estimators" and not source.exists()
    if repair is not None and source.suffix != ".onnx":
        raise typer.BadParameter("goes with ONNX files only", param_hint="--repair")
    if repair is not None:
        look_at_repair(source, repair)
    elif not of_estimators:
        look_at_anything(source, to_be_drawn=output is not None)
    from qtool.files.kinds import COMPARISON

    written = source / COMPARISON if source.is_dir() else source
    if output is None and written.suffix == ".json" and written.is_file():
        from qtool.reports.results import read_finished

        present(read_finished(written), as_json=as_json)  # without torch
        return
    from qtool import uses

    if repair is not None:
        present(uses.repair(source, repair), as_json=as_json)
    elif of_estimators:
        present(uses.inspect_estimators(output=output), as_json=as_json)
    else:
        if output is None:
            found = uses.inspect(source, run_code=run_code)
        else:
            found = uses.draw(source, output, run_code=run_code)
        present(found, as_json=as_json)
        if getattr(found, "damaged", ""):
            raise typer.Exit(2)
