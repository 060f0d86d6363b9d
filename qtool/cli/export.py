"""The command that makes an ONNX file of an integer model."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.first import look_at_export
from qtool.cli.options import (
    AsJson,
    DataAssignments,
    DataRoot,
    RunCode,
    batch_size,
    interruptible,
    present,
)
from qtool.cli.running import ALL_TARGETS, AnyTarget
from qtool.cli.words import Ceil
from qtool.errors import InputError
from qtool.problems import unknown


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
    from qtool.export.targets.target import TARGETS  # with those that a program has added

    if target not in TARGETS and target != ALL_TARGETS:
        raise InputError(unknown("target", target, [*TARGETS.names(), ALL_TARGETS]))
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
