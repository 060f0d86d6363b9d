"""The command that measures what each layer's width costs."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.first import look_at_recipe
from qtool.cli.options import (
    AsJson,
    Assignments,
    DataRoot,
    Device,
    RunCode,
    counts_of,
    interruptible,
    present,
)
from qtool.cli.running import RecipeFile

MOST = 8  # bits


@interruptible
def sensitivity(
    recipe: RecipeFile,
    *,
    bits: Annotated[str, typer.Option("--bits", help="Widths to measure, 1 to 8.")] = "2,3,4,8",
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder; default: runs/NAME-sensitivity.")
    ] = None,
    assignments: Assignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure what each layer's width costs: loss and output error, alone and with the rest.

    Where the recipe has a quantization.budget, choose widths by it, too.

    Example: qtool sensitivity recipes/digits.yaml --bits 2,4,8
    """
    widths = counts_of(bits, "--bits", most=MOST)
    look_at_recipe(recipe, assignments, device=device)
    from qtool import pipeline

    result = pipeline.sensitivity(
        recipe,
        bits=widths,
        output=output,
        assignments=assignments,
        device=device,
        data_root=data_root,
        run_code=run_code,
    )
    present(result, as_json=as_json)
