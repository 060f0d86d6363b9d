"""What is wrong with a command and can be told before torch is loaded, which takes seconds.

The stories check all of it again, and the rest: here nothing is decided that they do not.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from qtool.world.launched import launched


def look_at_recipe(
    recipe: Path, assignments: Sequence[str] | None = None, *, device: str = "auto"
) -> None:
    """Check what a command that trains is given.

    Raises:
        InputError: If there is no such recipe or device.
    """
    if launched().size > 1:
        return  # they end together, and one of them says why
    from qtool.recipe.early import refuse_wrong_words
    from qtool.runs.given import refuse_no_device

    refuse_no_device(device)
    refuse_wrong_words(recipe, assignments or ())


def look_at_train(
    recipe: Path,
    assignments: Sequence[str] | None,
    run_dir: Path | Literal["auto"] | None,
    *,
    device: str,
    resume: bool,
    overwrite: bool,
    command: str = "train",
) -> None:
    """Check what `qtool train`, or `qtool run`, is given.

    Raises:
        InputError: If there is no such recipe, device or run to go on with.
    """
    from qtool.runs.given import refuse_nothing_to_resume, refuse_run_to_train, refuse_two_ways

    refuse_two_ways(resume=resume, overwrite=overwrite, auto=run_dir == "auto")
    if launched().size == 1:
        refuse_run_to_train(recipe, command)
    look_at_recipe(recipe, assignments, device=device)
    if resume and isinstance(run_dir, Path) and launched().size == 1:
        refuse_nothing_to_resume(run_dir)


def look_at_convert(
    source: Path, assignments: Sequence[str] | None, *, output: Path | None, to: str, device: str
) -> None:
    """Check what `qtool convert` is given.

    Raises:
        InputError: If there is no such source or device, or `output` is of another kind.
    """
    from qtool.runs.given import (
        refuse_no_device,
        refuse_no_integer_file,
        refuse_no_source_of_conversion,
    )

    refuse_no_device(device)
    refuse_no_source_of_conversion(source)
    if to == "integer" and output is not None:
        refuse_no_integer_file(output)
    if not source.is_dir():
        look_at_recipe(source, assignments)


def look_at_export(source: Path, output: Path | None) -> None:
    """Check what `qtool export` is given.

    Raises:
        InputError: If there is no such source, or `output` is of another kind.
    """
    from qtool.runs.given import refuse_no_onnx_file, refuse_no_source_of_export

    refuse_no_source_of_export(source)
    if output is not None:
        refuse_no_onnx_file(output)


def look_at_models(models: Sequence[Path]) -> None:
    """Check that there are runs, integer models or ONNX files.

    Raises:
        InputError: If one is missing.
    """
    from qtool.runs.given import refuse_no_model

    for model in models:
        refuse_no_model(model)


def look_at_images(images: Sequence[Path]) -> None:
    """Check that there are images, or folders of them.

    Raises:
        InputError: If one is missing.
    """
    from qtool.runs.given import IMAGES, refuse_missing

    for given in images:
        refuse_missing(given, IMAGES)


def look_at_finished(sources: Sequence[Path]) -> None:
    """Check that there are run folders and ONNX files, to be put side by side.

    Raises:
        InputError: If one is neither.
    """
    from qtool.runs.given import refuse_nothing_finished

    for source in sources:
        refuse_nothing_finished(source)


def look_at_repair(source: Path, output: Path) -> None:
    """Check what `qtool inspect --repair` is given.

    Raises:
        InputError: If there is no such source, or `output` is another kind of file, or the source.
    """
    from qtool.runs.given import refuse_missing, refuse_no_place_of_repair

    refuse_missing(source, "an .onnx file")
    refuse_no_place_of_repair(source, output)


def look_at_anything(source: Path, *, to_be_drawn: bool) -> None:
    """Check what `qtool inspect` is given.

    Raises:
        InputError: If it is missing, of another kind, or a recipe that cannot be read.
    """
    from qtool.runs.given import refuse_nothing_to_inspect

    if not to_be_drawn and source.suffix in (".yaml", ".yml"):
        look_at_recipe(source)
    else:
        refuse_nothing_to_inspect(source, to_be_drawn=to_be_drawn)
