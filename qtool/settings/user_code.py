"""Users' own Python files: where they are looked for, and which of them may run.

A recipe of the user's names files that lie beside it, and they run. A run folder, which may come
from anyone, names files too: one on the user's own path runs if it is the very file that the run
was trained with, and the copy that the folder keeps only where the user says so. Nothing is run to
find that out.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qtool.errors import InputError, RecipeError


class UsersFile(NamedTuple):
    """A file that was read, once: what was checked is what runs."""

    path: Path
    content: bytes

    @property
    def digest(self) -> str:
        """Return its SHA-256."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True)
class UserCode:
    """Where a recipe's own Python files are looked for, and what they must be before they run.

    Attributes:
        folders: that may hold them, the first one first.
        digests: file name -> SHA-256 that it must have; None where any file will do.
        run: folder of the run whose recipe names them, which may be anyone's.
        into: folder of a run that the user's own recipe goes on with.
        run_copies: they may run, as `--run-code` says.
        runs: False where nothing may run at all, and files are only found.
    """

    folders: tuple[Path, ...]
    digests: Mapping[str, str] | None = None
    run: Path | None = None
    into: Path | None = None
    run_copies: bool = False
    runs: bool = True

    @classmethod
    def beside(cls, recipe: Path) -> "UserCode":
        """Return what holds for a recipe of the user's: files beside it, which run."""
        return cls((recipe.parent,))

    @classmethod
    def of_run(
        cls, folder: Path, digests: Mapping[str, str] | None, *, run_copies: bool = False
    ) -> "UserCode":
        """Return what holds for the recipe in a run folder.

        Args:
            folder: of the run.
            digests: file name -> SHA-256, as the run keeps them; None where it keeps none.
            run_copies: the folder's own copies may run, too.
        """
        named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        own = (Path(), *(Path(place) for place in named if place))
        if run_copies:
            return cls((*own, folder), digests, folder, run_copies=True)
        return cls(own, digests or {}, folder)

    def find(self, file: str) -> UsersFile:
        """Return the file of that name which may run.

        Raises:
            RecipeError: If there is none, or none that the run was trained with.
            InputError: If it has changed since a run of the user's began with it.
        """
        refused = ""
        for folder in self.folders:
            path = folder / file
            if not path.exists() or self._is_copy(path):
                continue
            found = _read(path)
            if self._is_wanted(found, file):
                return found
            refused = refused or f"{path}: {self._why_not(file)}"
        raise RecipeError(refused or self._missing(file))

    def _is_wanted(self, found: UsersFile, file: str) -> bool:
        """Tell whether a file is the one that the run was trained with, if there is a run.

        Raises:
            InputError: If it has changed since a run of the user's began with it.
        """
        if self.into is None:
            return self.digests is None or found.digest == self.digests.get(file)
        if self.digests and found.digest != self.digests.get(file, found.digest):
            raise InputError(
                f"{self.into}: holds a run with another {file}, of which it keeps a copy; choose "
                f"another --run-dir for what the file says now"
            )
        return True

    def _is_copy(self, path: Path) -> bool:
        """Tell whether a path leads into the run folder, whose copies do not run."""
        if self.run is None or self.run_copies:
            return False
        return path.resolve().is_relative_to(self.run.resolve())

    def _why_not(self, file: str) -> str:
        if self.digests and file in self.digests:
            return f"not the file that {self.run} was trained with (its SHA-256 is another)"
        return f"{self.run} keeps no SHA-256 of it, so it does not run"

    def _missing(self, file: str) -> str:
        if self.run is None:
            return f"{self.folders[0] / file}: no such file; an estimator lies beside its recipe"
        missing = f"{file}: not in the working directory, nor on PYTHONPATH"
        if (self.run / file).exists() and not self.run_copies:
            return f"{missing}; --run-code runs the copy that {self.run} keeps"
        return missing


NO_CODE = UserCode((), runs=False)  # nothing is looked for, and nothing runs


def _read(path: Path) -> UsersFile:
    try:
        return UsersFile(path, path.read_bytes())
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
