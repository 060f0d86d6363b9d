"""A user's own gradient estimator: a function in a Python file beside the recipe, or in a module.

It is named as every part of the user's is, has the signature of every other estimator, and stands
in ESTIMATORS under that name once it is loaded. A recipe names a file beside it; who calls qtool
from Python, where nothing lies beside, gives the file's absolute path. What goes wrong in an
estimator is shown as the user's, with its file and line.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType

import torch
from pydantic import TypeAdapter
from torch import Tensor

from qtool.errors import RecipeError
from qtool.numerics.estimators import ESTIMATORS, Bound
from qtool.problems import Problem, report
from qtool.settings.user_code import UserCode
from qtool.settings.user_parts import Part, Use, is_users, load_part, part_of_file, use_of

SIGNATURE = "(grad, u, low, high, *, parameter=1.0)"


def is_not_loaded(name: str) -> bool:
    """Tell whether a name is that of a user's estimator whose file was not run."""
    return is_users(name) and name not in ESTIMATORS


def no_gradient(grad: Tensor, u: Tensor, low: Bound, high: Bound, *, estimator: str) -> Tensor:
    """Stand in for an estimator that is not loaded: a model is read, judged and converted with it.

    Raises:
        RecipeError: Always, for nothing can be trained.
    """
    raise RecipeError(f"{estimator}: its file was not run, so there are no gradients")


def load_estimator(
    name: str, code: Path | UserCode, params: Mapping[str, object] | None = None
) -> None:
    """Put the function that `name` stands for into ESTIMATORS, after a first trial of it.

    Args:
        name: FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION.
        code: where it is looked for, and whether it may run; or the folder that holds it.
        params: of the recipe, for the trial.

    Raises:
        RecipeError: If there is no such file, module or function, it may not run, or is no
            estimator.
    """
    _add(load_part(name, code, "estimator"), params or {})


def load_by_absolute_paths(quantization: object) -> None:
    """Put a section's users' estimators into ESTIMATORS that are not there, from absolute paths.

    Args:
        quantization: the section as plain data, given from Python: nothing lies beside it.

    Raises:
        RecipeError: Lists every name whose path is relative, with the absolute one; or as
            `load_estimator`.
    """
    missing = [use for use in used_by(quantization) if use.name not in ESTIMATORS]
    found: list[Problem] = []
    for place, name, _, _ in missing:
        file, _, function_name = name.rpartition(":")
        if file.endswith(".py") and not Path(file).is_absolute():
            right = f"{Path(file).absolute()}:{function_name}"
            why = f"{name} is a relative path; from Python give the absolute one, {right}"
            found.append((place, why))
    if found:
        raise report("quantization", [(p.removeprefix("quantization."), why) for p, why in found])
    for _, name, params, _ in missing:
        path = Path(name.rpartition(":")[0])
        if path.suffix != ".py":
            load_estimator(name, Path(), params)
            continue
        if not path.exists():
            raise RecipeError(f"{path}: no such file; give the path of a Python file")
        file = UserCode((path.parent,)).find(path.name)
        _add(part_of_file(name, file, "estimator"), params)


def _add(part: Part, params: Mapping[str, object]) -> None:
    """Check and try a function, and put it into ESTIMATORS."""
    name, function = part.name, part.function
    assert isinstance(function, FunctionType)  # no other is an estimator
    problem = _signature_problem(function)
    if problem:
        raise RecipeError(f"{part.place} {problem}")
    try:
        signature = _with_types(function)
    except ValueError as error:
        raise RecipeError(f"{part.place} {error}") from error
    ESTIMATORS.add(_guarded(part, function, signature), name)
    accepted = ESTIMATORS.parameters(name)
    numbers = {k: v for k, v in params.items() if isinstance(v, int | float)}
    given = {k: v for k, v in numbers.items() if k in accepted}
    if all(p.default is not p.empty or k in given for k, p in accepted.items()):
        u = torch.linspace(-3.0, 3.0, 24)
        found = ESTIMATORS[name](torch.ones_like(u), u, -2.0, 2.0, **given)
        if not torch.isfinite(found).all():
            bad = int(torch.isfinite(found).int().argmin())
            why = f"returned {float(found[bad])} at u = {float(u[bad]):.3g}"
            raise RecipeError(f"{part.place} {why}")
        u = u.reshape(2, 3, 2, 2)  # as inputs of convolutions come, on a grid with a zero point
        bounds = torch.tensor(-2.0), torch.tensor(2.0)
        ESTIMATORS[name](torch.ones_like(u), u, *bounds, **given)


def used_by(quantization: object) -> Iterator[Use]:
    """Yield each use of a user's estimator in a quantization section, which may be wrong."""
    if not isinstance(quantization, dict):
        return
    overrides = quantization.get("overrides")
    places: list[tuple[str, object]] = [("", quantization)]
    if isinstance(overrides, list):
        places += [(f"overrides.{index}.", item) for index, item in enumerate(overrides)]
    for place, item in places:
        for side in ("weights", "activations"):
            inner = item.get(side) if isinstance(item, dict) else None
            chosen = inner.get("estimator") if isinstance(inner, dict) else None
            yield from use_of(f"quantization.{place}{side}.estimator", chosen, "estimator")


def _signature_problem(function: FunctionType) -> str:
    """Return what is wrong with a function's signature, or ""."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return f"must name its parameters: {SIGNATURE}"
    if len(positional) != 4:
        return f"must take grad, u, low, high, and its own parameters after a *: {SIGNATURE}"
    return ""


def _with_types(function: FunctionType) -> inspect.Signature:
    """Return a function's signature; a parameter of its own that has no type is a number.

    Raises:
        ValueError: If a parameter's type cannot be checked.
    """
    signature, typed = inspect.signature(function), []
    for parameter in signature.parameters.values():
        kind = parameter.annotation
        if parameter.kind is parameter.KEYWORD_ONLY:
            if kind is parameter.empty:
                kind = bool if isinstance(parameter.default, bool) else float
            try:
                kind = eval(kind, function.__globals__) if isinstance(kind, str) else kind
                TypeAdapter(kind)
            except Exception as error:
                why = f"has a parameter {parameter.name} whose type is no type of a number"
                raise ValueError(f"{why}; write {parameter.name}: float = 1.0") from error
        typed.append(parameter.replace(annotation=kind))
    return signature.replace(parameters=typed)


def _guarded(
    part: Part, function: FunctionType, signature: inspect.Signature
) -> Callable[..., Tensor]:
    """Return the function with its errors, and what it returns, blamed on its file and line."""
    place = part.place

    @functools.wraps(function)
    def guarded(grad: Tensor, u: Tensor, low: Bound, high: Bound, **params: object) -> Tensor:
        try:
            versions = grad._version, u._version
            result = function(grad, u, low, high, **params)
        except (Exception, SystemExit) as error:
            raise part.error(error) from error
        if (grad._version, u._version) != versions:
            raise RecipeError(f"{place} changes grad or u in place; return a new tensor")
        if not isinstance(result, Tensor):
            raise RecipeError(f"{place} returned {type(result).__name__}, not a tensor")
        if result.shape != u.shape:
            raise RecipeError(
                f"{place} returned the shape {list(result.shape)}; u has {list(u.shape)}"
            )
        if not result.is_floating_point():
            raise RecipeError(f"{place} returned {result.dtype}; u is {u.dtype}")
        if result.device != u.device:
            raise RecipeError(f"{place} returned a tensor on {result.device}; u is on {u.device}")
        return result.to(u.dtype)

    vars(guarded)["__signature__"] = signature
    return guarded
