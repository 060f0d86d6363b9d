"""The section `data`: the images and how they are read."""

from collections.abc import Mapping

from pydantic import Field

from qtool.data.datasets import DATASETS
from qtool.problems import Problem
from qtool.recipe.named_section import NamedSection


class Data(NamedSection):
    """The images."""

    name: str
    """A data set by its name, such as digits or image_folder."""

    batch_size: int = Field(default=64, ge=1)
    """Images in a training step, of all processes that train together."""

    image_size: int | None = Field(default=None, ge=4, le=2048)
    """Height and width in pixels that images are resized to; default: the data set's own."""

    train_samples: int | None = Field(default=None, ge=1)
    """Train on the first so many of a seeded shuffle; default: all."""

    repeats: int = Field(default=1, ge=1, le=100_000)
    """Passes over the training images in an epoch; for sets of a few batches."""

    augment: bool = True
    """Random crops and flips, as the data set's own recipe has them."""

    root: str | None = None
    """Folder of the data sets; default: QTOOL_DATA, else ~/.cache/qtool/data."""

    workers: int = Field(default=2, ge=0, le=256)
    """Processes that decode images which do not fit into memory."""

    holdout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training images that is held out: each epoch is judged by them, and by the
    validation set the last one only."""

    @property
    def several(self) -> bool:
        """Tell whether an image may have several classes, or none."""
        return self.parameter("labels", "one") == "several"

    @classmethod
    def named_problems(cls, name: str, params: Mapping[str, object]) -> list[Problem]:
        """Return what is wrong with the data set's name or its parameters."""
        own = {key: value for key, value in params.items() if key not in cls.model_fields}
        return DATASETS.problems(name, own)
