"""The commands that use a model: what it says of images, and how long it takes."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.first import look_at_images, look_at_models
from qtool.cli.options import (
    AsJson,
    DataAssignments,
    DataRoot,
    RunCode,
    counts_of,
    interruptible,
    present,
    present_prediction,
)


@interruptible
def predict(
    model: Annotated[Path, typer.Argument(help="Run folder, integer model or ONNX file.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    *,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes of each image.")] = 5,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", help="Write a line for each class of each image, too.")
    ] = None,
    assignments: DataAssignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    as_json: AsJson = False,
) -> None:
    """Tell the classes of images, and their shares; ONNX files need no torch.

    Example: qtool predict digits.onnx photographs
    """
    look_at_models([model])
    look_at_images(images)
    if model.suffix == ".onnx":  # the other stories load torch, which need not be there
        from qtool.prediction.predict import predict_onnx

        result = predict_onnx(model, images, top=top, csv_file=csv_file)
    else:
        from qtool import uses

        result = uses.predict(
            model,
            images,
            top=top,
            csv_file=csv_file,
            assignments=assignments,
            data_root=data_root,
            run_code=run_code,
        )
    present_prediction(result, as_json=as_json)


@interruptible
def bench(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX files, run folders or integer models.")
    ],
    *,
    threads: Annotated[
        str, typer.Option("--threads", help="How many threads, such as 1,2, or all.")
    ] = "1",
    batch: Annotated[
        str, typer.Option("--batch", help="How many images at once, such as 1,8.")
    ] = "1",
    rounds: Annotated[
        int, typer.Option("--rounds", min=2, help="How often each file is run, all in turn.")
    ] = 30,
    profile: Annotated[
        bool, typer.Option("--profile", help="Time each operator of the runtime's graph, too.")
    ] = False,
    assignments: DataAssignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    as_json: AsJson = False,
) -> None:
    """Time files in ONNX Runtime, beside their network in float and the runtime's own int8.

    Example: qtool bench digits.onnx --threads 1,2 --batch 1,8
    """
    counts = counts_of(threads, "--threads", word="all")
    batches = counts_of(batch, "--batch")
    look_at_models(models)
    from qtool import uses

    result = uses.bench(
        models,
        threads=counts,
        batches=batches,
        rounds=rounds,
        profile=profile,
        assignments=assignments,
        data_root=data_root,
        run_code=run_code,
    )
    present(result, as_json=as_json)
