"""The section `data`: the images and how they are read."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from qtool.data.augmentations import AUGMENTATIONS, list_problems
from qtool.data.datasets import DATASETS
from qtool.data.mixing import MIXES
from qtool.problems import Problem, ProblemsError, shown
from qtool.recipe.named_section import NamedSection
from qtool.settings.section import Choice, in_registry, problems_of
from qtool.settings.user_parts import is_users

_AUGMENTATION: TypeAdapter[Choice] = TypeAdapter(
    Annotated[Choice, in_registry(AUGMENTATIONS, unless=is_users)]
)


def _named(item: object) -> object:
    if isinstance(item, Choice):
        return item.model_dump()
    return {"name": item} if isinstance(item, str) else item


class Data(NamedSection):
    """The images."""

    name: str
    """A data set by its name, such as digits or image_folder, or a class or function of one's own,
    package.module:Name or file.py:Name."""

    batch_size: int = Field(default=64, ge=1)
    """Images in a training step, of all processes that train together."""

    image_size: int | None = Field(default=None, ge=4, le=2048)
    """Height and width in pixels that images are resized to; default: the data set's own."""

    train_samples: int | None = Field(default=None, ge=1)
    """Train on the first so many of a seeded shuffle; default: all."""

    repeats: int = Field(default=1, ge=1, le=100_000)
    """Passes over the training images in an epoch; for sets of a few batches."""

    augment: bool | list[Choice] = True
    """true: random crops and flips, as the data set's own recipe has them. A list of what is done
    in their place, in order: transforms of torchvision.transforms.v2 or of one's own, by name;
    `default` at its beginning for the data set's own; mixup and cutmix for batches."""

    root: str | None = None
    """Folder of the data sets; default: QTOOL_DATA, else ~/.cache/qtool/data."""

    workers: int = Field(default=2, ge=0, le=256)
    """Processes that decode images which do not fit into memory."""

    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training images that is held out: each epoch is judged by them, and by the
    validation set the last one only."""

    @field_validator("augment", mode="before")
    @classmethod
    def _known_augmentations(cls, value: object) -> object:
        """Check each member of a list, and their order."""
        if isinstance(value, bool):
            return value
        if not isinstance(value, list):
            why = f"{shown(value)} is neither true nor false nor a list of augmentations"
            raise ProblemsError([("", why)])
        made, found = list[object](), list[Problem]()
        for place, item in enumerate(value):
            try:
                _AUGMENTATION.validate_python(item)
                made.append(_named(item))
            except ValidationError as error:
                inner = problems_of(error, Choice)
                found += [(f"{place}.{key}".rstrip("."), why) for key, why in inner]
        found = found or list_problems([Choice.model_validate(item) for item in made])
        if found:
            raise ProblemsError(found)
        return made

    @property
    def mixes(self) -> bool:
        """Tell whether images are mixed with each other, so that labels are shares of classes."""
        return isinstance(self.augment, list) and any(c.name in MIXES for c in self.augment)

    @property
    def several(self) -> bool:
        """Tell whether an image may have several classes, or none."""
        return self.parameter("labels", "one") == "several"

    @classmethod
    def named_problems(cls, name: str, params: Mapping[str, object]) -> list[Problem]:
        """Return what is wrong with the data set's name or its parameters."""
        if is_users(name) and name not in DATASETS:
            return []  # its code did not run
        own = {key: value for key, value in params.items() if key not in cls.model_fields}
        return DATASETS.problems(name, own)
