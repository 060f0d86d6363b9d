"""Users' own Python code: where it is looked for, and which of it may run.

A recipe of the user's names files that lie beside it, or modules there, in the working directory
or installed, and they run. A run folder, which may come from anyone, names them too: what lies on
the user's own path runs if it is the very file that the run was trained with; the copy that the
folder keeps, and what is installed, only where the user says so. Nothing is run to find that out.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Literal, NamedTuple, get_args

from qtool.console import warn
from qtool.errors import InputError, RecipeError
from qtool.settings.user_modules import UsersModule, absolute, installed_source, module_in

Family = Literal["model", "data set", "transform", "loss", "optimizer", "estimator", "teacher"]
FAMILIES: frozenset[Family] = frozenset(get_args(Family))
TO_JUDGE: tuple[Family, ...] = ("model", "data set", "loss")  # without training
TO_EXPORT: tuple[Family, ...] = ("model", "data set")


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
    """Where a recipe's own Python code is looked for, and what it must be before it runs.

    Attributes:
        folders: that may hold them, the first one first.
        digests: file or module -> SHA-256 that it must have; None where any will do.
        run: folder of the run whose recipe names them, which may be anyone's.
        into: folder of a run that the user's own recipe goes on with.
        run_copies: they may run, as `--run-code` says.
        runs: of which families parts run; of the others they are only found.
        lay_in: module -> folder in which a run says that it lay, for messages.
        loaded: what has run already, so that it does once.
    """

    folders: tuple[Path, ...]
    digests: Mapping[str, str] | None = None
    run: Path | None = None
    into: Path | None = None
    run_copies: bool = False
    runs: frozenset[Family] = FAMILIES
    lay_in: Mapping[str, str] = field(default_factory=dict)
    loaded: dict[str, ModuleType] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def beside(cls, *recipes: Path) -> "UserCode":
        """Return what holds for recipes of the user's: files beside them, which run."""
        return cls(tuple(dict.fromkeys(recipe.parent for recipe in recipes)))

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

    def only(self, *families: Family) -> "UserCode":
        """Return the same, where only parts of these families run."""
        return replace(self, runs=self.runs & frozenset(families))

    def find(self, file: str, family: Family = "estimator") -> UsersFile:
        """Return the file of that name which may run.

        Args:
            file: its name.
            family: of the part in it, for messages.

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
        raise RecipeError(refused or self._missing(file, family))

    def find_module(self, name: str) -> UsersModule:
        """Return the module of that name which may run; it is not imported.

        Raises:
            RecipeError: If there is none, or none that the run was trained with.
            InputError: If it has changed since a run of the user's began with it.
        """
        refused = ""
        here = [] if self.run is not None else [Path()]
        folders = absolute([*self.folders, *here])
        for folder in folders:
            path = module_in(folder, name)
            if path is None or self._is_copy(path):
                continue
            found = _read(path)
            wanted = self._is_wanted(found, name)
            if wanted or self.run_copies:
                if not wanted:
                    warn(f"{path}: {self._why_not(name)}")
                return UsersModule(name, path, found.digest, folder)
            refused = refused or f"{path}: {self._why_not(name)}"
        if refused:
            raise RecipeError(f"{refused}; --run-code runs it nevertheless")
        if self.run is not None and not self.run_copies:
            raise RecipeError(
                f"{name}: not in the working directory, nor on PYTHONPATH{self._lay(name)}; "
                "--run-code imports what is installed"
            )
        try:
            source = installed_source(name, folders)
        except RecipeError as error:
            raise RecipeError(f"{error}{self._lay(name)}") from error
        digest = "" if source is None else _read(source).digest
        kept = (self.digests or {}).get(name, digest)
        if self.run is not None and kept != digest:
            warn(f"{source}: {self._why_not(name)}")
        return UsersModule(name, source, digest, None)

    def _lay(self, name: str) -> str:
        """Say where a module lay that is not found, where that is known."""
        return f"; it lay in {self.lay_in[name]}" if name in self.lay_in else ""

    def _is_wanted(self, found: UsersFile, file: str) -> bool:
        """Tell whether a file is the one that the run was trained with, if there is a run.

        Raises:
            InputError: If it has changed since a run of the user's began with it.
        """
        if self.into is None:
            return self.digests is None or found.digest == self.digests.get(file)
        if self.digests and found.digest != self.digests.get(file, found.digest):
            copy = ", of which it keeps a copy" if file.endswith(".py") else ""
            raise InputError(
                f"{self.into}: holds a run with another {file}{copy}; choose another --run-dir for "
                f"what the {'file' if copy else 'module'} says now"
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

    def _missing(self, file: str, family: Family) -> str:
        if self.run is None:
            article = "an" if family[0] in "aeiou" else "a"
            lies = f"{article} {family} lies beside its recipe"
            return f"{self.folders[0] / file}: no such file; {lies}"
        missing = f"{file}: not in the working directory, nor on PYTHONPATH"
        if (self.run / file).exists() and not self.run_copies:
            return f"{missing}; --run-code runs the copy that {self.run} keeps"
        return missing


NO_CODE = UserCode((), runs=frozenset())  # nothing is looked for, and nothing runs


def _read(path: Path) -> UsersFile:
    try:
        return UsersFile(path, path.read_bytes())
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
