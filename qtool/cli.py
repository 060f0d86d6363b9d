"""The command line: parse arguments, call the pipeline, show results and errors. No other logic.

Nothing heavy is imported before a command runs, so that `--help` and usage errors are quick.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from qtool import __version__
from qtool.errors import QtoolError
from qtool.options import (
    AsJson,
    Assignments,
    Device,
    Seeds,
    SharedRecipe,
    batch_size,
    interruptible,
    names_of,
    present,
    rates_of,
    seeds_of,
    windows_of,
)

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
compare_app = typer.Typer(
    no_args_is_help=True,
    help="Compare estimators, schedules, an estimator with its equivalent, or finished runs.",
)
app.add_typer(compare_app, name="compare")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qtool {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Train, convert, compare and export low-bit vision networks."""


@app.command()
@interruptible
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe file, such as recipes/digits.yaml.")],
    run_dir: Annotated[
        Path | None,
        typer.Option("--run-dir", help="Folder for the run; default: runs/RECIPE'S NAME."),
    ] = None,
    assignments: Assignments = None,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on exactly from the last checkpoint.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure where the time of a step goes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train the network that RECIPE describes.

    Example: qtool train recipes/digits.yaml --set training.epochs=3
    """
    from qtool import pipeline, tables

    result = pipeline.train(recipe, run_dir, assignments, device, resume, profile)
    present(result, as_json, tables.show_summary)


@app.command()
@interruptible
def convert(
    source: Annotated[Path, typer.Argument(help="Run folder, or a recipe to quantize untrained.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="File of the integer model; or run folder.")
    ] = None,
    to: Annotated[
        str, typer.Option("--to", help="integer, or straight_through: the run as an STE run.")
    ] = "integer",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Turn a trained run, or a recipe's given weights, into an integer model.

    With --to straight_through: a run with another estimator into the equivalent STE run.

    Example: qtool convert runs/digits
    """
    if to not in ("integer", "straight_through"):
        why = f"{to!r} is neither integer nor straight_through"
        raise typer.BadParameter(why, param_hint="--to")
    from qtool import pipeline, tables

    if to == "straight_through":
        result = pipeline.convert_to_straight_through(source, output, device)
        present(result, as_json, tables.show_straight_through)
        return
    present(pipeline.convert(source, output, device), as_json, tables.show_conversion)


@app.command()
@interruptible
def export(
    source: Annotated[Path, typer.Argument(help="Run folder or integer model.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="ONNX file; default: model.onnx in the run.")
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help="Runtime that the file is for.")
    ] = "onnxruntime",
    batch: Annotated[
        str, typer.Option("--batch", help="Fixed number of images, or dynamic.")
    ] = "dynamic",
    annotation: Annotated[
        bool, typer.Option("--annotation/--no-annotation", help="Write quantization_annotation.")
    ] = True,
    ceil: Annotated[
        str,
        typer.Option("--ceil", help="For rounding ceil: exact, or shifted (faster, nearly so)."),
    ] = "exact",
    as_json: AsJson = False,
) -> None:
    """Export to ONNX and prove the file in ONNX Runtime.

    Example: qtool export runs/digits --output digits.onnx
    """
    size = batch_size(batch)
    if ceil not in ("exact", "shifted"):
        raise typer.BadParameter(f"{ceil!r} is neither exact nor shifted", param_hint="--ceil")
    from qtool import pipeline, tables

    result = pipeline.export(source, output, target, size, annotation, ceil)
    present(result, as_json, tables.show_export)


@compare_app.command("estimators")
@interruptible
def compare_estimators(
    recipe: SharedRecipe,
    estimators: Annotated[
        str | None, typer.Option("--estimators", help="Arms, as a,b,c; default: all of them.")
    ] = None,
    on: Annotated[
        str | None, typer.Option("--on", help="weights or activations: whose estimator differs.")
    ] = None,
    seeds: Seeds = "3",
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder; default: runs/NAME-estimators.")
    ] = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train arms that differ in their gradient estimator only, seed by seed.

    Example: qtool compare estimators recipes/digits.yaml --estimators straight_through,identity
    """
    chosen = seeds_of(seeds)
    if on not in (None, "weights", "activations"):
        raise typer.BadParameter(f"{on!r} is neither weights nor activations", param_hint="--on")
    from qtool import comparisons, tables

    names = None if estimators is None else names_of(estimators)
    result = comparisons.compare_estimators(recipe, names, on, chosen, output, assignments, device)
    present(result, as_json, tables.show_comparison)


@compare_app.command("schedules")
@interruptible
def compare_schedules(
    recipe: SharedRecipe,
    schedules: Annotated[
        str | None, typer.Option("--schedules", help="Arms, as a,b,c; default: the usual four.")
    ] = None,
    on: Annotated[
        str, typer.Option("--on", help="alpha of the blends, against the STE; or learning_rate.")
    ] = "alpha",
    windows: Annotated[
        str | None,
        typer.Option("--windows", help="Shares of training, as 0-0.8,0-1: each schedule in each."),
    ] = None,
    seeds: Seeds = "3",
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder; default: runs/NAME-schedules.")
    ] = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train arms that differ in one schedule only: alpha's against the STE, or the learning rate's.

    Example: qtool compare schedules recipes/digits_blend.yaml --schedules linear,cubic --seeds 3
    """
    chosen = seeds_of(seeds)
    if on not in ("alpha", "learning_rate"):
        why = f"{on!r} is neither alpha nor learning_rate"
        raise typer.BadParameter(why, param_hint="--on")
    within = None if windows is None else windows_of(windows)
    from qtool import comparisons, tables

    names = None if schedules is None else names_of(schedules)
    result = comparisons.compare_schedules(
        recipe, names, on, within, chosen, output, assignments, device
    )
    present(result, as_json, tables.show_comparison)


@compare_app.command("equivalence")
@interruptible
def compare_equivalence(
    recipe: Annotated[Path, typer.Argument(help="Recipe with a fixed range of the weights.")],
    estimator: Annotated[
        str | None, typer.Option("--estimator", help="Of the weights; default: the recipe's.")
    ] = None,
    learning_rates: Annotated[
        str | None,
        typer.Option("--learning-rates", help="As a,b,c; default: the recipe's x 4, 2, 1, 1/2."),
    ] = None,
    seeds: Seeds = "1",
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder; default: runs/NAME-equivalence.")
    ] = None,
    assignments: Assignments = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train with an estimator and with the STE it should be equal to, and see how far they part.

    Example: qtool compare equivalence recipes/digits.yaml --estimator sinusoidal --seeds 1
    """
    chosen = seeds_of(seeds)
    rates = None if learning_rates is None else rates_of(learning_rates)
    from qtool import comparisons, tables

    result = comparisons.compare_equivalence(
        recipe, estimator, rates, chosen, output, assignments, device
    )
    present(result, as_json, tables.show_equivalence)


@compare_app.command("runs")
@interruptible
def compare_runs(
    sources: Annotated[list[Path], typer.Argument(help="Run folders and ONNX files.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for comparison.json.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put finished runs and exported files side by side.

    Example: qtool compare runs runs/digits runs/digits/model.onnx
    """
    from qtool import comparisons, tables

    present(comparisons.compare_runs(sources, output), as_json, tables.show_runs)


@app.command()
@interruptible
def inspect(
    source: Annotated[
        Path,
        typer.Argument(
            help="Recipe, run folder, integer model or ONNX file; or the word estimators."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", help="Only of estimators: draw a page NAME.html, or a folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a file or run holds: layers, bits, scales, bytes; lint ONNX files.

    With the word estimators: print every gradient estimator; --output draws them.

    Example: qtool inspect recipes/digits.yaml
    """
    of_estimators = str(source) == "estimators" and not source.exists()
    if output is not None and not of_estimators:
        raise typer.BadParameter("goes with qtool inspect estimators only", param_hint="--output")
    from qtool import pipeline, tables

    if of_estimators:
        result = pipeline.inspect_estimators(output)
        present(result, as_json, tables.show_estimators)
    else:
        present(pipeline.inspect(source), as_json, tables.show_inspection)


def main(argv: list[str] | None = None) -> None:
    """Run qtool; show a QtoolError as a message and an exit code, never as a traceback."""
    try:
        app(argv)
    except QtoolError as error:
        typer.secho(f"error: {error}", fg=typer.colors.RED, err=True)
        sys.exit(error.exit_code)
