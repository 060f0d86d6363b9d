"""What commands are given, refused where it is missing or of another kind; opens without torch.

The command line asks before torch is loaded, which takes seconds, and the stories ask again.
"""

from collections.abc import Collection
from pathlib import Path

from qtool.errors import InputError
from qtool.files.kinds import FOLDERS, RECIPE, Kind, kind_of, other_kind, suffixes_of
from qtool.files.whole import refuse_unless_writable
from qtool.known import known_names
from qtool.problems import either

DEVICES = ("auto", "cpu", "cuda", "mps", "cuda:N")
RUN_OR_RECIPE = "a run folder or a recipe"
RUN_OR_INTEGER = "a run folder or integer model"
IMAGES = "images, or folders of them"
ANY_MODEL = "a run folder, an integer model or ONNX file"
ANYTHING = "a recipe, run, comparison or model, or the word estimators"
DRAWN = "a run or a comparison"
OF_OTHERS = {
    *(".pt", ".pth", ".ckpt"),
    *suffixes_of(Kind.ONNX, Kind.OTHER_RUNTIME, Kind.RECIPE, Kind.JSON),
}
"""Suffixes by which people know files that are no integer models."""


def refuse_missing(source: Path, wanted: str) -> None:
    """Check that there is a file or folder; `wanted` is what would be right.

    Raises:
        InputError: If there is none.
    """
    try:
        there = source.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: not the name of a file; give {wanted}") from error
    if not there:
        raise InputError(f"{source}: no such file or folder; give {wanted}")


def refuse_other_kind(source: Path, taken: Collection[Kind], wanted: str) -> None:
    """Check that there is a file or folder, and that its name is none of another kind's.

    Args:
        source: as it was given.
        taken: the kinds of files that would be right, beside folders.
        wanted: what would be right, in words.

    Raises:
        InputError: If there is none, or it is of another kind.
    """
    refuse_missing(source, wanted)
    if why := other_kind(source, (*FOLDERS, *taken), wanted):
        raise InputError(f"{source}: {why}")


def refuse_run_to_train(recipe: Path, command: str) -> None:
    """Check that what is to be trained is no run folder, and say how its run goes on.

    Raises:
        InputError: If it is one.
    """
    if kind_of(recipe) is Kind.RUN:
        raise InputError(
            f"{recipe}: a run folder; qtool {command} takes a recipe, and goes on with this run by "
            f"qtool {command} {recipe / RECIPE} --run-dir {recipe} --resume"
        )


def refuse_no_source_of_conversion(source: Path) -> None:
    """Check that an integer model can be made of a source, as far as its name tells.

    Raises:
        InputError: If there is no such source, or it is neither a run folder nor a recipe.
    """
    refuse_other_kind(source, (Kind.RECIPE, Kind.JSON), RUN_OR_RECIPE)
    if source.is_dir():
        refuse_no_run(source)


def refuse_nothing_to_inspect(source: Path, *, to_be_drawn: bool) -> None:
    """Check that there is something to inspect or to draw, as far as its name tells.

    Raises:
        InputError: If there is none, or it is a file of another kind.
    """
    models = (Kind.RECIPE, Kind.ONNX, Kind.SAFETENSORS, Kind.WEIGHTS)
    taken = () if to_be_drawn else models
    refuse_other_kind(source, (*taken, Kind.JSON), DRAWN if to_be_drawn else ANYTHING)


def refuse_no_run(folder: Path) -> None:
    """Check that a folder was made by `qtool train` or `qtool convert`.

    Raises:
        InputError: If it was not.
    """
    if not (folder.is_dir() and (folder / RECIPE).is_file()):
        raise InputError(f"{folder}: not a run folder, it has no {RECIPE}")


def refuse_no_device(wanted: str) -> None:
    """Check that a word names a device, which need not be there.

    Raises:
        InputError: If it does not.
    """
    kind, colon, index = wanted.partition(":")
    numbered = kind == "cuda" and index.isascii() and index.isdecimal()
    if wanted not in DEVICES[:-1] and not (colon and numbered):
        raise InputError(f"--device {wanted}: choose {either(DEVICES)}")


def refuse_no_integer_file(path: Path) -> None:
    """Check that an integer model may go to a file.

    Raises:
        InputError: If its name is that of another kind of file, or nothing can be written there.
    """
    if path.suffix.lower() in OF_OTHERS:
        also = "; qtool export makes an .onnx file of it" if path.suffix == ".onnx" else ""
        raise InputError(f"{path}: an integer model is a .safetensors file{also}")
    refuse_unless_writable(path, "--output names a .safetensors file")


def refuse_no_source_of_export(source: Path) -> None:
    """Check that a file can be made of a source, as far as its name tells.

    Raises:
        InputError: If there is no such source, or it is of another kind.
    """
    refuse_other_kind(source, (Kind.SAFETENSORS,), RUN_OR_INTEGER)
    if source.is_dir():
        refuse_no_run(source)


def refuse_no_onnx_file(path: Path, option: str = "--output") -> None:
    """Check that an ONNX file may go to a path.

    Args:
        path: of the file.
        option: that names it.

    Raises:
        InputError: If its name is that of another kind of file, or nothing can be written there.
    """
    if path.suffix.lower() != ".onnx" and not path.is_dir():
        targets = f"; --target says for which runtime: {either(known_names('targets'))}"
        told = targets if option == "--output" else ""
        raise InputError(f"{path}: qtool writes ONNX files, whose names end in .onnx{told}")
    refuse_unless_writable(path, f"{option} names an .onnx file")


def refuse_no_place_of_repair(source: Path, output: Path) -> None:
    """Check that a repaired file may go to `output`, and does not take the place of its source.

    Raises:
        InputError: If it is another kind of file, the source, or nothing can be written there.
    """
    refuse_no_onnx_file(output, "--repair")
    if output.exists() and source.exists() and output.samefile(source):
        raise InputError(f"{output}: the file that is repaired; --repair names another .onnx file")


def refuse_no_model(model: Path) -> None:
    """Check that there is a run, an integer model or an ONNX file.

    Raises:
        InputError: If there is none, or it is of another kind.
    """
    if model.suffix == ".onnx" and not model.exists():
        raise InputError(f"{model}: no such file; qtool export RUN --output {model} makes it")
    refuse_other_kind(model, (Kind.SAFETENSORS, Kind.ONNX), ANY_MODEL)
    if model.is_dir():
        refuse_no_run(model)


def refuse_nothing_finished(source: Path) -> None:
    """Check that a run folder or an ONNX file can be put beside others, as far as its name tells.

    Raises:
        InputError: If it is neither.
    """
    if source.is_dir():
        refuse_no_run(source)
    elif source.suffix != ".onnx":
        raise InputError(f"{source}: neither a run folder nor an .onnx file")
    elif not source.is_file():
        raise InputError(f"{source}: no such file; qtool export RUN --output {source} makes it")


def refuse_two_ways(*, resume: bool, overwrite: bool, auto: bool) -> None:
    """Check that a run is to go on, to be moved aside or to be in a new folder: one of the three.

    Raises:
        InputError: If two of them are asked for.
    """
    if resume and (overwrite or auto):
        other = "--overwrite begins a new one" if overwrite else "--run-dir auto begins a new one"
        raise InputError(f"--resume goes on with a run, and {other}; leave out one of the two")
    if overwrite and auto:
        raise InputError(
            "--run-dir auto takes a free folder, so --overwrite has nothing to move; leave out one "
            "of the two"
        )


def refuse_nothing_to_resume(folder: Path) -> None:
    """Check that a run's folder is there, so that a mistyped name begins no other run.

    Raises:
        InputError: If it is not.
    """
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; leave out --resume to begin the run there")
