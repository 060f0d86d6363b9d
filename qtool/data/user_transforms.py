"""A user's own transform of training images: a class or a function, by file or module.

A function takes an image, uint8 [C, H, W], and keyword parameters; a class takes the parameters,
and its instances the image. Either gives an image of the same kind.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from qtool.errors import RecipeError
from qtool.problems import did_you_mean
from qtool.registry import Registry
from qtool.settings.user_code import UserCode, UsersFile
from qtool.settings.user_parameters import as_member, settable
from qtool.settings.user_parts import Part, load_part, part_of_file

_LOADED: dict[str, Part] = {}


def load_transform(name: str, code: UserCode, params: Mapping[str, object]) -> None:
    """Load the transform that `name` stands for, and check its parameters.

    Raises:
        RecipeError: If there is none, it may not run, or takes no such parameters.
    """
    part = load_part(name, code, "transform")
    own = settable(part, positional=0 if inspect.isclass(part.function) else 1)
    table: Registry[Callable[..., object]] = Registry("transform")
    table.add(as_member(part, part.function, own), name)
    taken = {p.name for p in own}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in own)
    unknown = [key for key in params if key not in taken and not takes_any]
    problems = [f"{name} has no parameter {key}{did_you_mean(key, taken)}" for key in unknown]
    if not unknown and not takes_any:
        problems = [": ".join(filter(None, found)) for found in table.problems(name, params)]
    if problems:
        raise RecipeError("; ".join(problems))
    _LOADED[name] = part


def stand_in(image: Tensor) -> object:
    """Stand in for a transform whose file was not run.

    Raises:
        RecipeError: Always, for nothing can be trained.
    """
    raise RecipeError("data.augment: the file of a transform was not run, so nothing can be varied")


def users_transform(name: str, params: Mapping[str, object]) -> Callable[[Tensor], object]:
    """Return a transform that was loaded, with its parameters; a stand-in for another."""
    return stand_in if name not in _LOADED else _UsersTransform(_LOADED[name], params)


class _UsersTransform:
    """Calls a user's transform; worker processes make it again from what the file held."""

    def __init__(self, part: Part, params: Mapping[str, object]) -> None:
        self._part, self._params = part, dict(params)
        self._call: Callable[[Tensor], object]
        if inspect.isclass(part.function):
            made = part.call(**params)
            if not callable(made):
                raise RecipeError(f"{part.place} gives objects that cannot be called")
            self._call = made
        else:
            self._call = partial(part.function, **params)

    def __call__(self, image: Tensor) -> object:
        try:
            return self._call(image)
        except Exception as error:
            raise self._part.error(error) from error

    def __reduce__(self) -> tuple[object, ...]:
        source = self._part.source
        if not source.is_file:
            return _UsersTransform, (self._part, self._params)
        file = UsersFile(self._part.path, source.content)
        return _made_again, (self._part.name, file, self._params)


def _made_again(name: str, file: UsersFile, params: Mapping[str, object]) -> _UsersTransform:
    return _UsersTransform(part_of_file(name, file, "transform"), params)
