"""The commands to begin with: what there is to choose from, and a first recipe."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.completion import one_of, shipped_names
from qtool.cli.first import look_at_recipe, look_at_train
from qtool.cli.options import (
    AsJson,
    Assignments,
    DataRoot,
    Device,
    NoReport,
    RunCode,
    interruptible,
    present,
    present_by,
)
from qtool.cli.running import Overwrite, RecipeFile, Resume, RunDir, Target
from qtool.known import FAMILIES

RUNS = "runs"
KINDS = [*FAMILIES, RUNS]


@interruptible
def list_choices(
    kind: Annotated[
        str | None, typer.Argument(help=f"One of {', '.join(KINDS)}.", autocompletion=one_of(KINDS))
    ] = None,
    folder: Annotated[
        Path | None, typer.Argument(help="Of runs: the folder they lie in; default: runs.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List what recipes may choose, or runs with their accuracy; loads no torch.

    Example: qtool list estimators
    """
    if kind is None:
        raise typer.BadParameter(f"say which: {', '.join(KINDS)}", param_hint="KIND")
    if kind not in KINDS:
        from qtool.problems import did_you_mean

        why = f"{kind!r} cannot be listed{did_you_mean(kind, KINDS)}"
        raise typer.BadParameter(why, param_hint="KIND")
    if folder is not None and kind != RUNS:
        raise typer.BadParameter(f"goes with runs, not with {kind}", param_hint="FOLDER")
    from qtool.reports.listings import ListedChoice, Listing, show_listing

    if kind == RUNS:
        from qtool.runs.kept.listed import runs_in

        present_by(show_listing, runs_in(folder or Path(RUNS)), as_json=as_json)
        return
    from qtool.known import known

    choices = [ListedChoice.model_validate(each) for each in known(kind)]
    present_by(show_listing, Listing(kind=kind, choices=choices), as_json=as_json)


@interruptible
def init(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of images, with a folder for each class; default: this one."),
    ] = None,
    *,
    shipped: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Copy a recipe that ships, such as digits.",
            autocompletion=shipped_names,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="The recipe; default: NAME.yaml, here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a first recipe: for a folder of images, all of which it opens, or a copy.

    Example: qtool init photographs
    """
    if shipped is not None and folder is not None:
        raise typer.BadParameter("excludes FOLDER: it is a copy", param_hint="--from")
    from qtool.reports.new_recipes import show_new_recipe

    if shipped is not None:
        from qtool.start.shipped import copy_shipped

        made = copy_shipped(shipped, output)
    else:
        from qtool import pipeline

        made = pipeline.init(folder or Path(), output=output)
    present_by(show_new_recipe, made, as_json=as_json)


@interruptible
def check(
    recipe: RecipeFile,
    *,
    assignments: Assignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Say what RECIPE will take: plan, operations, size, memory, time; a few steps are not kept.

    Example: qtool check recipes/digits.yaml
    """
    look_at_recipe(recipe, assignments, device=device)
    from qtool import pipeline

    result = pipeline.check(
        recipe, assignments=assignments, device=device, data_root=data_root, run_code=run_code
    )
    present(result, as_json=as_json)


@interruptible
def run(
    recipe: RecipeFile,
    *,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
    assignments: Assignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    device: Device = "auto",
    resume: Resume = False,
    target: Target = "onnxruntime",
    no_report: NoReport = False,
    as_json: AsJson = False,
) -> None:
    """Train what RECIPE describes, convert it and export it, in one go.

    Example: qtool run recipes/digits.yaml
    """
    place = run_dir if run_dir is None or run_dir == "auto" else Path(run_dir)
    look_at_train(
        recipe,
        assignments,
        place,
        device=device,
        resume=resume,
        overwrite=overwrite,
        command="run",
    )
    from qtool import pipeline

    result = pipeline.run(
        recipe,
        run_dir=place,
        overwrite=overwrite,
        assignments=assignments,
        device=device,
        resume=resume,
        target=target,
        data_root=data_root,
        run_code=run_code,
        report=not no_report,
    )
    present(result, as_json=as_json)
