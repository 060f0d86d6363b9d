"""Where a run goes: a folder by its name, the next free one, or that of a run which is moved aside.

Nothing is ever deleted. A run that is moved aside goes back where nothing came of the new one.
"""

import os
import re
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Literal

from qtool.console import say
from qtool.errors import InputError, WriteError
from qtool.files.lock import OF_LOCKS, only_writer
from qtool.runs.kept.folder import RunFolder
from qtool.world.world import World

RUNS = Path("runs")
NextFree = Literal["auto"]
AUTO: NextFree = "auto"


def named_folder(wanted: Path | NextFree | None, recipe: Path) -> RunFolder | None:
    """Return the folder of that name, None where a free one is to be found."""
    if wanted == AUTO:
        return None
    return RunFolder(RUNS / recipe.stem if wanted is None else Path(wanted))


@contextmanager
def claimed(
    wanted: Path | NextFree | None,
    recipe: Path,
    world: World,
    *,
    overwrite: bool = False,
    again: bool = False,
) -> Generator[RunFolder]:
    """Lend the folder of a run, which other processes that look for a free one then pass by.

    Args:
        wanted: the folder; auto for the next free `runs/NAME-N`, None for `runs/NAME`.
        recipe: path of the recipe, whose name is NAME.
        world: whose first process looks.
        overwrite: a run that lies there is moved to the next free `FOLDER.old-N` before.
        again: torchrun has started all processes again, for the folder that they had before.

    Raises:
        InputError: If what lies there is no run, another process writes there, or the recipe
            itself lies there.
        WriteError: If it cannot be moved.
    """
    with ExitStack() as held:

        def claim() -> RunFolder:
            folder = named_folder(wanted, recipe)
            if folder is None:
                return _next_free(recipe.stem, held, again=again)
            if overwrite and not again:
                held.enter_context(_moved_aside(folder, recipe))
            return folder

        yield world.from_first(claim)


def _next_free(name: str, held: ExitStack, *, again: bool) -> RunFolder:
    """Return the folder after the last one that has a number, locked until `held` ends."""
    numbered = re.compile(rf"{re.escape(name)}-(\d+)")
    there = [numbered.fullmatch(each.name) for each in RUNS.iterdir()] if RUNS.is_dir() else []
    last = max((int(found[1]) for found in there if found), default=0)
    if again and last:
        return RunFolder(RUNS / f"{name}-{last}")
    for number in count(last + 1):
        folder = RunFolder(RUNS / f"{name}-{number}")
        folder.refuse_unless_makeable()
        with ExitStack() as own:
            try:
                own.enter_context(only_writer(folder.path))
            except InputError:  # another process has begun one there
                continue
            if folder.is_free():
                held.push(own.pop_all())
                return folder
    raise AssertionError("numbers do not end")


@contextmanager
def _moved_aside(folder: RunFolder, recipe: Path) -> Generator[None]:
    """Move a run out of the way, and back if its place is still free at the end."""
    if folder.is_free():
        yield
        return
    if not folder.holds_run():
        raise InputError(
            f"{folder}: not empty, and not a run; --overwrite moves only runs; choose another "
            f"--run-dir"
        )
    if folder.path.resolve() in recipe.resolve().parents:
        raise InputError(
            f"{recipe}: lies in {folder}, which --overwrite would move; copy it to another place"
        )
    aside = _free_beside(folder.path)
    with only_writer(folder.path):
        if os.name != "nt":
            _move(folder.path, aside)
    if os.name == "nt":  # moves no folder while a file in it is open, as its lock is
        _move(folder.path, aside)
    for name in OF_LOCKS:
        with suppress(OSError):
            (aside / name).unlink()
    say(f"moved {folder} to {aside}")
    try:
        yield
    finally:
        if folder.is_free():
            with suppress(OSError):
                if folder.path.is_dir():
                    folder.path.rmdir()
                aside.replace(folder.path)
                say(f"moved {aside} back to {folder}, as no run was begun there")


def _free_beside(path: Path) -> Path:
    """Return the first FOLDER.old-N that is not there."""
    asides = (path.with_name(f"{path.name}.old-{number}") for number in count(1))
    return next(aside for aside in asides if not os.path.lexists(aside))


def _move(path: Path, aside: Path) -> None:
    try:
        path.rename(aside)
    except OSError as error:
        why = f"cannot be moved to {aside}: {error.strerror or error}"
        raise WriteError(f"{path}: {why}") from error
