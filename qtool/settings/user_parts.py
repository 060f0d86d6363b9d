"""A user's own part of a recipe: a model, data set, transform, loss, optimizer or estimator.

It is named FILE.py:NAME, a file beside the recipe, or PACKAGE.MODULE:NAME, a module beside it, in
the working directory or installed; nothing else is imported. NAME is a class or a function; its
keyword parameters are the recipe's parameters, but for those that qtool itself gives. What goes
wrong in it is shown as the user's, with its file and line.
"""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from qtool.errors import QtoolError, RecipeError
from qtool.settings.user_code import Family, UserCode, UsersFile
from qtool.settings.user_files import line_of, member_of, run_file, users_error
from qtool.settings.user_modules import imported, version_of

QTOOL = Path(__file__).parents[1]
PREFIXES = ("timm",)  # of built-in names with a colon


class Source(NamedTuple):
    """Where a part comes from: what a run keeps to find it again.

    Attributes:
        label: name of the file, or dotted name of the module.
        path: of its source; None where there is none.
        digest: SHA-256 of that, or "".
        version: of the package that a module is part of, "" where it has none.
        folder: that a module was found in; None where it is installed.
        content: of a file, as it ran.
    """

    label: str
    path: Path | None
    digest: str
    version: str = ""
    folder: Path | None = None
    content: bytes = b""

    @property
    def is_file(self) -> bool:
        """Tell whether it is a file, of which a run keeps a copy, and no module."""
        return self.label.endswith(".py")


_SOURCES: dict[str, Source] = {}


class Use(NamedTuple):
    """A user's part where a recipe asks for it."""

    place: str  # dotted, such as quantization.weights.estimator
    name: str
    params: dict[str, object]
    family: Family = "estimator"


def is_users(name: str) -> bool:
    """Tell whether a name has the form FILE.py:NAME or PACKAGE.MODULE:NAME."""
    where, colon, inner = name.rpartition(":")
    if not colon or not all(part.isidentifier() for part in inner.split(".")):
        return False
    if where.endswith(".py"):
        return ":" not in where or Path(where).is_absolute()
    return where not in PREFIXES and all(part.isidentifier() for part in where.split("."))


def use_of(place: str, choice: object, family: Family) -> list[Use]:
    """Return the use of a user's part that a choice of a recipe is, which may be wrong; or none.

    Args:
        place: of the choice.
        choice: a name, or {name: ..., parameter: ...}.
        family: of what it chooses.
    """
    own: Mapping[str, object] = choice if isinstance(choice, dict) else {"name": choice}
    name = own.get("name")
    if not isinstance(name, str) or not is_users(name):
        return []
    return [Use(place, name, {k: v for k, v in own.items() if k != "name"}, family)]


@dataclass(frozen=True)
class Part:
    """A user's class or function, and where it comes from.

    Attributes:
        name: as the recipe has it.
        family: that it is one of.
        function: the class or function.
        source: where it comes from.
        path: of that, as messages show it.
    """

    name: str
    family: Family
    function: Callable[..., object]
    source: Source
    path: Path

    @property
    def place(self) -> str:
        """Return file, line and name, for messages."""
        line = line_of(self.function)
        where = str(self.path) if line is None else f"{self.path}:{line}"
        return f"{where}: {self.name.rpartition(':')[2]}"

    def call(self, *args: object, **params: object) -> object:
        """Call it; what it raises is shown with the user's own line.

        Raises:
            RecipeError: If it raises anything but an error of qtool's.
        """
        try:
            return self.function(*args, **params)
        except QtoolError:
            raise
        except (Exception, SystemExit) as error:
            raise self.error(error) from error

    def error(self, error: BaseException) -> RecipeError:
        """Return an error that names the user's own line where another was raised."""
        return users_error(self.path, error)


def load_part(name: str, code: Path | UserCode, family: Family) -> Part:
    """Return a user's part; its file is run, or its module imported, once.

    Args:
        name: FILE.py:NAME or PACKAGE.MODULE:NAME.
        code: where it is looked for, and whether it may run; or the folder that holds it.
        family: that it is to be one of.

    Raises:
        RecipeError: If there is no such file, module, class or function, or it may not run.
    """
    allowed = code if isinstance(code, UserCode) else UserCode((code,))
    where, _, inner = name.rpartition(":")
    if where.endswith(".py"):
        return part_of_file(name, allowed.find(file_of(name), family), family, allowed.loaded)
    found = allowed.find_module(where)
    path = found.path or Path(where)
    try:
        module = imported(found)
    except QtoolError:
        raise
    except (Exception, SystemExit) as error:
        raise users_error(path, error) from error
    source = Source(where, found.path, found.digest, version_of(where), found.folder)
    _SOURCES[name] = source
    return Part(name, family, member_of(module, inner, path, family), source, path)


def part_of_file(
    name: str, file: UsersFile, family: Family, loaded: dict[str, ModuleType] | None = None
) -> Part:
    """Run a file that was read, unless it is among those `loaded`, and return a part in it.

    Raises:
        RecipeError: If it fails, or has no such class or function.
    """
    known = {} if loaded is None else loaded
    key = f"{file.path.absolute()} {file.digest}"
    if key not in known:
        known[key] = run_file(file)
    source = _of_file(file)
    _SOURCES[name] = source
    inner = name.rpartition(":")[2]
    function = member_of(known[key], inner, file.path, family)
    return Part(name, family, function, source, file.path)


def find_part(name: str, code: UserCode) -> None:
    """Remember where a part that is not to run comes from, so that it can be kept with a run.

    Raises:
        RecipeError: If the name is one of a file in another folder.
    """
    where = name.rpartition(":")[0]
    if not where.endswith(".py"):
        return
    file = file_of(name)
    for folder in code.folders:
        path = (folder / file).resolve()
        if path.is_file():
            _SOURCES[name] = _of_file(UsersFile(path, path.read_bytes()))
            return


def users_mistake(error: BaseException) -> RecipeError | None:
    """Return an error that names the user's own line, where a part's code raised another.

    What qtool itself raised below that code stays qtool's.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if _is_users_code(path.resolve()):
            return users_error(path, error)
        if path.is_relative_to(QTOOL):
            return None
    return None


def _is_users_code(path: Path) -> bool:
    """Tell whether a file is that of a part, or of the package that a part's module is in."""
    for source in _SOURCES.values():
        top = source.label.partition(".")[0]
        if path == source.path or (source.folder and path.is_relative_to(source.folder / top)):
            return True
    return False


def _of_file(file: UsersFile) -> Source:
    return Source(file.path.name, file.path.resolve(), file.digest, content=file.content)


def file_of(name: str) -> str:
    """Return the file of FILE.py:NAME.

    Raises:
        RecipeError: If it is one in another folder.
    """
    file = name.rpartition(":")[0]
    if Path(file).name != file:
        raise RecipeError(f"{name}: give the name of a file beside the recipe, without folders")
    return file


def source_of(name: str) -> Source | None:
    """Return where a part that was loaded, or found, comes from; None of another."""
    return _SOURCES.get(name)
