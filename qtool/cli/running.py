"""What the commands that train a recipe, or look at one, share; how choices stand in help."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.completion import one_of
from qtool.known import known_names
from qtool.problems import either

TARGETS = known_names("targets")
ALL_TARGETS = "all"

RecipeFile = Annotated[Path, typer.Argument(help="Recipe file, such as recipes/digits.yaml.")]
RunDir = Annotated[
    str | None,
    typer.Option("--run-dir", help="Folder for the run; default: runs/NAME. auto: runs/NAME-N."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Move a run that lies there to FOLDER.old-N before.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on exactly from the last checkpoint.")]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        help=f"What the file is for: {either(TARGETS)}.",
        autocompletion=one_of(TARGETS),
    ),
]
AnyTarget = Annotated[
    str,
    typer.Option(
        "--target",
        help=f"What the file is for: {', '.join(TARGETS)}; or {ALL_TARGETS}: one file for each.",
        autocompletion=one_of([*TARGETS, ALL_TARGETS]),
    ),
]
