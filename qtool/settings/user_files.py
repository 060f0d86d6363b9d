"""A user's file that is run, and what is found in it; what it raises is shown as the user's."""

import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import CodeType, ModuleType

from qtool.errors import RecipeError
from qtool.settings.user_code import Family, UsersFile

MOST_NAMED = 12  # names listed in a message


def run_file(file: UsersFile) -> ModuleType:
    """Run a file and return what it holds, as a module that pickling finds."""
    path = file.path
    try:
        text = file.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    module = ModuleType(f"{path.stem}_{file.digest[:8]}")
    module.__file__ = str(path)
    try:
        code: CodeType = compile(text, str(path), "exec")
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        raise RecipeError(f"{path}:{line}: not Python: {error}") from error
    sys.modules[module.__name__] = module
    try:
        exec(code, vars(module))
    except (Exception, SystemExit) as error:
        raise users_error(path, error) from error
    return module


def member_of(module: ModuleType, inner: str, where: Path, family: Family) -> Callable[..., object]:
    """Return a class or function of a module; an estimator is a function.

    Raises:
        RecipeError: If it has none of that name.
    """
    only = family == "estimator"
    kind = "function" if only else "class or function"
    found: object = module
    for part in inner.split("."):
        known = [k for k, v in vars(found).items() if _is_offered(k, v, only_functions=only)]
        found = getattr(found, part, None)
        if found is None or (part not in known and only):
            raise RecipeError(f"{where}: has no {kind} {part}{_near_miss(part, known)}")
    if not callable(found):
        raise RecipeError(f"{where}: {inner} is {type(found).__name__}, not a {kind}")
    return found


def _is_offered(name: str, value: object, *, only_functions: bool) -> bool:
    if only_functions:
        return inspect.isfunction(value)
    return not name.startswith("_") and callable(value)


def users_error(path: Path, error: BaseException) -> RecipeError:
    """Return an error that names the user's own line where another was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    same = path.resolve()
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == same]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines = [error.lineno]
    place = f"{path}:{lines[-1]}" if lines else str(path)
    reason = (str(error).strip() or "no message").splitlines()[0]
    hint = ""
    if isinstance(error, ModuleNotFoundError) and error.name:
        beside = path.with_name(f"{error.name.partition('.')[0]}.py")
        if beside.is_file() or beside.with_suffix("").is_dir():
            hint = f"; a file runs alone: name it as a module, {path.stem}:NAME, to import others"
    return RecipeError(f"{place}: {type(error).__name__}: {reason}{hint}")


def line_of(function: object) -> int | None:
    """Return the line of a function, or of a class, None where Python cannot tell."""
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType):
        return code.co_firstlineno
    try:
        return inspect.getsourcelines(function)[1] if isinstance(function, type) else None
    except (OSError, TypeError):
        return None


def _near_miss(word: str, known: Sequence[str]) -> str:
    if close := get_close_matches(word, known, n=1):
        return f"; did you mean {close[0]}?"
    if not known or len(known) > MOST_NAMED:
        return ""
    return f"; choose one of: {', '.join(known)}"
