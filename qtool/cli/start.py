"""The commands to begin with: what there is to choose from."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.options import AsJson, interruptible, present_listing
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
    if kind == RUNS:
        from qtool.runs.listed import runs_in

        present_listing(runs_in(folder or Path(RUNS)), as_json=as_json)
        return
    from qtool.known import known
    from qtool.reports.listings import ListedChoice, Listing

    choices = [ListedChoice.model_validate(each) for each in known(kind)]
    present_listing(Listing(kind=kind, choices=choices), as_json=as_json)
