"""The commands to begin with: what there is to choose from, and a first recipe."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.options import AsJson, interruptible, present_by
from qtool.known import FAMILIES

RUNS = "runs"
KINDS = [*FAMILIES, RUNS]


@interruptible
def list_choices(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(KINDS)}.")],
    folder: Annotated[
        Path | None, typer.Argument(help="Of runs: the folder they lie in; default: runs.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List what recipes may choose, or runs with their accuracy; loads no torch.

    Example: qtool list estimators
    """
    if kind not in KINDS:
        from qtool.problems import did_you_mean

        why = f"{kind!r} cannot be listed{did_you_mean(kind, KINDS)}"
        raise typer.BadParameter(why, param_hint="KIND")
    if folder is not None and kind != RUNS:
        raise typer.BadParameter(f"goes with runs, not with {kind}", param_hint="FOLDER")
    from qtool.reports.listings import ListedChoice, Listing, show_listing

    if kind == RUNS:
        from qtool.runs.listed import runs_in

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
        str | None, typer.Option("--from", help="Copy a recipe that ships, such as digits.")
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
