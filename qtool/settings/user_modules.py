"""Users' own modules, PACKAGE.MODULE in a recipe: where they are, and how they are imported.

A module is found without importing anything, so that it can be told first whether it may run.
"""

import importlib
import importlib.metadata
import importlib.util
import pkgutil
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from qtool.errors import RecipeError

_IMPORTED: dict[str, str] = {}  # module -> SHA-256 of its file when it was imported


class UsersModule(NamedTuple):
    """A module that was found.

    Attributes:
        name: dotted.
        path: of its source; None where there is none to read.
        digest: SHA-256 of that, or "".
        folder: that it was found in; None where it is installed.
    """

    name: str
    path: Path | None
    digest: str
    folder: Path | None


def module_in(folder: Path, name: str) -> Path | None:
    """Return the source of a module that lies in a folder, None where there is none."""
    stem = folder.joinpath(*name.split("."))
    places = (stem / "__init__.py", stem.with_name(f"{stem.name}.py"))
    with suppress(OSError, ValueError):  # no name of a file
        return next((place for place in places if place.is_file()), None)
    return None


def installed_source(name: str, folders: Sequence[Path]) -> Path | None:
    """Return the source of an installed module, None where it has none; its packages are imported.

    Args:
        name: of the module.
        folders: where it was looked for before, for messages.

    Raises:
        RecipeError: If there is no such module.
    """
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        spec = None
    # a package can fail with any error there is
    except Exception as error:
        raise RecipeError(f"{name}: cannot be imported: {type(error).__name__}: {error}") from error
    if spec is None:
        raise RecipeError(f"{name}: no such module{_near_miss(name, folders)}")
    path = Path(spec.origin) if spec.origin and spec.has_location else None
    return path if path is not None and path.suffix == ".py" else None


def _near_miss(name: str, folders: Sequence[Path]) -> str:
    """Return what a module that is not there may have been meant to be, or where it may lie."""
    package, _, last = name.rpartition(".")
    within = [folder.joinpath(*package.split(".")) if package else folder for folder in folders]
    loaded = getattr(sys.modules.get(package), "__path__", []) if package else []
    known = {m.name for m in pkgutil.iter_modules([*map(str, within), *loaded])}
    if close := get_close_matches(last, known, n=1):
        return f"; did you mean {'.'.join(filter(None, [package, close[0]]))}?"
    return "; a module lies beside its recipe or in the working directory, or is installed"


def version_of(name: str) -> str:
    """Return the version of the package that a module is part of, "" where it has none."""
    top = name.partition(".")[0]
    with suppress(importlib.metadata.PackageNotFoundError, ValueError):
        return importlib.metadata.version(top)
    return str(getattr(sys.modules.get(top), "__version__", ""))


def imported(module: UsersModule) -> ModuleType:
    """Import a module, anew where its file has changed since.

    Raises:
        RecipeError: If another module of its name is loaded from elsewhere.
        Exception: Whatever the module itself raises.
    """
    loaded = sys.modules.get(module.name)
    if loaded is not None and module.folder is not None:
        here = _is_of(loaded, module.path)
        if not here and not _is_users(module.name):
            there = getattr(loaded, "__file__", None) or "Python itself"
            why = f"another module of that name is loaded, from {there}"
            raise RecipeError(f"{module.path}: {why}; give yours another name")
        if not here or _IMPORTED.get(module.name, module.digest) != module.digest:
            _forget(module.name.partition(".")[0])
    with _first_in_path(module.folder):
        made = importlib.import_module(module.name)
    if module.folder is not None and not _is_of(made, module.path):
        there = getattr(made, "__file__", None) or "Python itself"
        why = f"another module of that name is found before it, {there}"
        raise RecipeError(f"{module.path}: {why}; give yours another name")
    _IMPORTED[module.name] = module.digest
    return made


def _is_of(module: ModuleType, path: Path | None) -> bool:
    said = getattr(module, "__file__", None)
    return path is not None and said is not None and Path(said).resolve() == path.resolve()


def _is_users(name: str) -> bool:
    top = name.partition(".")[0]
    return any(known.partition(".")[0] == top for known in _IMPORTED)


def _forget(top: str) -> None:
    for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
        del sys.modules[name]
    for name in [n for n in _IMPORTED if n.partition(".")[0] == top]:
        del _IMPORTED[name]


@contextmanager
def _first_in_path(folder: Path | None) -> Generator[None]:
    """Have a folder first in sys.path while inside, and last from then on, for later imports."""
    importlib.invalidate_caches()
    if folder is None:
        yield
        return
    place = str(folder.resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        sys.path.remove(place)
        if place not in sys.path:
            sys.path.append(place)


def absolute(folders: Sequence[Path]) -> list[Path]:
    """Return folders by their whole names, each once."""
    return list(dict.fromkeys(folder.absolute() for folder in folders))
