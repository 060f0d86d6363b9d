"""The command that makes an integer model of a run, or of a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.first import look_at_convert
from qtool.cli.options import (
    AsJson,
    CalibrationImages,
    ConvertAssignments,
    DataRoot,
    Device,
    MaxDrop,
    Method,
    RunCode,
    interruptible,
    present,
    refuse_of_integers,
)
from qtool.cli.words import To


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
