"""The command that trains a recipe."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.first import look_at_train
from qtool.cli.options import (
    AsJson,
    Assignments,
    DataRoot,
    Device,
    NoReport,
    RunCode,
    interruptible,
    present,
)
from qtool.cli.running import Overwrite, RecipeFile, Resume, RunDir
from qtool.world.launched import launched


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
