"""The user's own parts that a recipe names: found, loaded into the tables that it chooses from.

To let another place of a recipe name one, add it to `used_by`, and the family's loader to LOADERS.
"""

from collections.abc import Callable, Iterator, Mapping

from qtool.data.user_data import load_data
from qtool.data.user_transforms import load_transform
from qtool.errors import RecipeError
from qtool.models.user_models import load_model
from qtool.problems import Problem
from qtool.recipe.places import at
from qtool.settings import user_estimators
from qtool.settings.user_code import Family, UserCode
from qtool.settings.user_parts import Source, Use, find_part, source_of, use_of
from qtool.training.user_training import load_loss, load_optimizer

# Each takes a name, where its code is looked for, and the recipe's parameters; it puts the part
# into the table of its family, or raises a RecipeError.
LOADERS: dict[Family, Callable[[str, UserCode, Mapping[str, object]], None]] = {
    "model": load_model,
    "data set": load_data,
    "loss": load_loss,
    "optimizer": load_optimizer,
    "estimator": user_estimators.load_estimator,
    "transform": load_transform,
    "teacher": load_model,
}


def used_by(data: Mapping[str, object]) -> Iterator[Use]:
    """Yield each use of a user's part in a recipe's plain data, which may be wrong."""
    yield from use_of("model.name", at(data, "model"), "model")
    yield from use_of("data.name", at(data, "data"), "data set")
    yield from user_estimators.used_by(at(data, "quantization"))
    yield from use_of("training.loss", at(data, "training.loss"), "loss")
    yield from use_of("training.optimizer", at(data, "training.optimizer"), "optimizer")
    yield from use_of("training.teacher.name", at(data, "training.teacher"), "teacher")
    transforms = at(data, "data.augment")
    for place, choice in enumerate(transforms if isinstance(transforms, list) else []):
        yield from use_of(f"data.augment.{place}", choice, "transform")


def load_parts(data: Mapping[str, object], code: UserCode) -> list[Problem]:
    """Load the parts that a recipe names; those that are not to run are found only.

    Returns:
        What is wrong with them, each with its place.
    """
    found: list[Problem] = []
    for place, name, params, family in used_by(data):
        try:
            if family in code.runs:
                LOADERS[family](name, code, params)
            else:
                find_part(name, code)
        except RecipeError as error:
            found.append((place, str(error)))
    return found


def sources(data: Mapping[str, object]) -> dict[str, Source]:
    """Return where the parts that a recipe names come from, by file or module, as far as known."""
    known = [source_of(use.name) for use in used_by(data)]
    return {source.label: source for source in known if source is not None}


def sources_of_estimators(data: Mapping[str, object]) -> dict[str, str]:
    """Return file or module -> SHA-256 of the source of each user's estimator in a recipe."""
    used = user_estimators.used_by(at(data, "quantization"))
    known = [source_of(use.name) for use in used]
    return {s.label: s.digest for s in sorted(filter(None, known))}
