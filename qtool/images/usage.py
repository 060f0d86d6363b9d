"""What the user of a network has to know: its classes, and how images are prepared for it.

Integer models and ONNX files hold the same entries of metadata: two as JSON, and one word.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter

from qtool.files.json_data import typed_json
from qtool.images.preprocess import Preprocess

CLASSES = "qtool.classes"
PREPROCESS = "qtool.preprocess"
LABELS = "qtool.labels"
SEVERAL = "several"  # absent where an image has one class
_NAMES = TypeAdapter(tuple[str, ...])
_PREPROCESS = TypeAdapter(Preprocess)


@dataclass(frozen=True)
class Usage:
    """What goes into a network, and what comes out of it.

    Attributes:
        classes: names, in the order of the outputs; none where outputs are no classes.
        preprocess: how a picture is prepared; None where inputs are no pictures, or nobody said.
        several: an image may have several classes, or none: the share of each is the sigmoid of
            its logit; else shares are the softmax of all.
    """

    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None
    several: bool = False

    def shares(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Return the share of each class, 0..1, of one image's logits [classes]."""
        wide = np.asarray(logits, np.float64)
        if self.several:
            return np.exp(-np.logaddexp(0, -wide))
        raised = np.exp(wide - wide.max())
        return raised / raised.sum()

    def metadata(self) -> dict[str, str]:
        """Return the entries that a file holds; what is not known is absent."""
        said: dict[str, str] = {}
        if self.classes:
            said[CLASSES] = json.dumps(self.classes, ensure_ascii=False)
        if self.preprocess is not None:
            said[PREPROCESS] = self.preprocess.model_dump_json()
        if self.several:
            said[LABELS] = SEVERAL
        return said

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "Usage":
        """Return what a file's entries say.

        Raises:
            ValueError: If they hold something else.
        """
        names, prepared = metadata.get(CLASSES), metadata.get(PREPROCESS)
        return cls(
            () if names is None else typed_json(_NAMES, names),
            None if prepared is None else typed_json(_PREPROCESS, prepared),
            metadata.get(LABELS) == SEVERAL,
        )
