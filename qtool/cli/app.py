"""The command line: parse arguments, call the pipeline, show results and errors. No other logic.

Nothing heavy is imported before a command runs, so that `--help` and usage errors are quick.
"""

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer

from qtool import __version__
from qtool.cli.compare import compare_app
from qtool.cli.first import look_at_convert, look_at_export, look_at_train
from qtool.cli.inspect import inspect
from qtool.cli.options import (
    AsJson,
    Assignments,
    CalibrationImages,
    ConvertAssignments,
    DataAssignments,
    DataRoot,
    Device,
    MaxDrop,
    Method,
    NoReport,
    RunCode,
    batch_size,
    interruptible,
    present,
    refuse_of_integers,
    send_what_is_taken,
    tell,
)
from qtool.cli.running import AnyTarget, Overwrite, RecipeFile, Resume, RunDir
from qtool.cli.sensitivity import sensitivity
from qtool.cli.start import check, init, list_choices, run
from qtool.cli.use import bench, predict
from qtool.cli.words import Ceil, To
from qtool.errors import QtoolError
from qtool.stopping import heeding_signals
from qtool.world.launched import launched, refuse_several

ALL_TARGETS = "all"
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # never qtool's mistake

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(compare_app, name="compare")


def _show_version(wanted: bool) -> None:  # noqa: FBT001 Typer calls it with the value alone
    if wanted:
        typer.echo(f"qtool {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show version.")
    ] = False,
) -> None:
    """Train, convert, compare and export low-bit vision networks."""
    if context.invoked_subcommand != "train":
        refuse_several(str(context.invoked_subcommand))


@app.command()
@interruptible
def train(
    recipe: RecipeFile,
    *,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
    assignments: Assignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    device: Device = "auto",
    resume: Resume = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Measure where the time of a step goes.")
    ] = False,
    no_report: NoReport = False,
    as_json: AsJson = False,
) -> None:
    """Train the network that RECIPE describes.

    Example: qtool train recipes/digits.yaml --set training.epochs=3
    """
    place = run_dir if run_dir is None or run_dir == "auto" else Path(run_dir)
    look_at_train(recipe, assignments, place, device=device, resume=resume, overwrite=overwrite)
    from qtool import pipeline

    result = pipeline.train(
        recipe,
        run_dir=place,
        overwrite=overwrite,
        assignments=assignments,
        device=device,
        resume=resume,
        profile=profile,
        data_root=data_root,
        run_code=run_code,
        report=not no_report,
    )
    if launched().first:
        present(result, as_json=as_json)


@app.command()
@interruptible
def convert(
    source: Annotated[Path, typer.Argument(help="Run folder, or a recipe to quantize untrained.")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", help="File of the integer model; or run folder.")
    ] = None,
    to: To = "integer",
    no_saturation: Annotated[
        bool,
        typer.Option(
            "--no-saturation",
            help="Round channels anew that could saturate on processors without VNNI.",
        ),
    ] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Take best.pt, of the epoch that the hold-out chose.")
    ] = False,
    method: Method = None,
    calibration_images: CalibrationImages = None,
    max_drop: MaxDrop = None,
    assignments: ConvertAssignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Turn a trained run, or a recipe's given weights, into an integer model.

    With --to straight_through: a run with another estimator into the equivalent STE run.

    Example: qtool convert runs/digits
    """
    asked = {"--no-saturation": no_saturation, "--best": best, "--method": method}
    if to != "integer":
        refuse_of_integers(asked | {"--calibration-images": calibration_images})
    look_at_convert(source, assignments, output=output, to=to, device=device)
    from qtool import pipeline

    if to == "integer":
        result = pipeline.convert(
            source,
            output=output,
            device=device,
            no_saturation=no_saturation,
            best=best,
            method=method,
            calibration_images=calibration_images,
            max_drop=max_drop,
            assignments=assignments,
            data_root=data_root,
            run_code=run_code,
        )
        present(result, as_json=as_json)
    else:
        result = pipeline.convert_to_straight_through(
            source,
            output=output,
            device=device,
            assignments=assignments,
            data_root=data_root,
            run_code=run_code,
        )
        present(result, as_json=as_json)


@app.command()
@interruptible
def export(
    source: Annotated[Path, typer.Argument(help="Run folder or integer model.")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", help="ONNX file; default: model.onnx in the run.")
    ] = None,
    target: AnyTarget = "onnxruntime",
    batch: Annotated[
        str, typer.Option("--batch", help="Fixed number of images, or dynamic.")
    ] = "dynamic",
    annotation: Annotated[
        bool, typer.Option("--annotation/--no-annotation", help="Write quantization_annotation.")
    ] = True,
    ceil: Ceil = "exact",
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where operators run in float between integers.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time all threads and the runtime's own int8, too.")
    ] = False,
    unproven: Annotated[
        bool, typer.Option("--unproven", help="Write the file though its runtime is not installed.")
    ] = False,
    preprocess: Annotated[
        bool, typer.Option("--preprocess", help="Take decoded images of any size, uint8 NHWC.")
    ] = False,
    softmax: Annotated[
        bool, typer.Option("--softmax", help="Give shares of classes, too, beside logits.")
    ] = False,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="Leave height and width open, where they may be.")
    ] = False,
    assignments: DataAssignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    as_json: AsJson = False,
) -> None:
    """Export to ONNX and prove the file in its runtime: ONNX Runtime, or that of --target.

    Example: qtool export runs/digits --output digits.onnx
    """
    size = batch_size(batch)
    look_at_export(source, output)
    from qtool import pipeline

    if target == ALL_TARGETS:
        made = pipeline.export_for_all(
            source,
            output=output,
            batch=size,
            annotate=annotation,
            ceil=ceil,
            strict=strict,
            measure=measure,
            unproven=unproven,
            preprocess=preprocess,
            softmax=softmax,
            any_size=any_size,
            assignments=assignments,
            data_root=data_root,
            run_code=run_code,
        )
        present(made, as_json=as_json)
        if made.failed:
            raise typer.Exit(1)
        return
    result = pipeline.export(
        source,
        output=output,
        target=target,
        batch=size,
        annotate=annotation,
        ceil=ceil,
        strict=strict,
        measure=measure,
        unproven=unproven,
        preprocess=preprocess,
        softmax=softmax,
        any_size=any_size,
        assignments=assignments,
        data_root=data_root,
        run_code=run_code,
    )
    present(result, as_json=as_json)


app.command()(predict)
app.command()(bench)


app.command()(inspect)
app.command()(init)
app.command()(check)
app.command()(run)
app.command()(sensitivity)
app.command("list")(list_choices)


def _with_local_cluster(argv: list[str]) -> list[str]:
    """Return arguments with the address of a local cluster after a `--cluster` that has none."""
    after = [*argv[1:], "--"]
    bare = [a == "--cluster" and b.startswith("-") for a, b in zip(argv, after, strict=bool(argv))]
    return ["--cluster=local" if no else a for a, no in zip(argv, bare, strict=True)]


def main(argv: list[str] | None = None) -> None:
    """Run qtool; show a QtoolError as a message and an exit code, never as a traceback."""
    send_what_is_taken()
    try:
        with heeding_signals(at_the_end=argv is None):
            app(_with_local_cluster(sys.argv[1:] if argv is None else argv))
    except QtoolError as error:
        from qtool.console import printable

        if not error.told:
            tell(printable(f"error: {error}"))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        from qtool.console import printable

        where = "" if error.filename is None else f"{error.filename}: "
        tell(printable(f"error: {where}{error.strerror}"))
        sys.exit(1)
    except Exception as error:
        own = sys.modules.get("qtool.settings.user_parts")  # where no part is loaded, none failed
        mistake = None if own is None else own.users_mistake(error)
        if mistake is None:
            raise
        from qtool.console import printable

        tell(printable(f"error: {mistake}"))
        sys.exit(mistake.exit_code)
