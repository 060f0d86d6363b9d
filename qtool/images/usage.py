"""What the user of a network has to know: its classes, and how images are prepared for it.

Integer models and ONNX files hold the same two entries of metadata, as JSON.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import TypeAdapter

from qtool.files.json_data import typed_json
from qtool.images.preprocess import Preprocess

CLASSES = "qtool.classes"
PREPROCESS = "qtool.preprocess"
_NAMES = TypeAdapter(tuple[str, ...])
_PREPROCESS = TypeAdapter(Preprocess)


@dataclass(frozen=True)
class Usage:
    """What goes into a network, and what comes out of it.

    Attributes:
        classes: names, in the order of the outputs; none where outputs are no classes.
        preprocess: how a picture is prepared; None where inputs are no pictures, or nobody said.
    """

    classes: tuple[str, ...] = ()
    preprocess: Preprocess | None = None

    def metadata(self) -> dict[str, str]:
        """Return the entries that a file holds; what is not known is absent."""
        said: dict[str, str] = {}
        if self.classes:
            said[CLASSES] = json.dumps(self.classes, ensure_ascii=False)
        if self.preprocess is not None:
            said[PREPROCESS] = self.preprocess.model_dump_json()
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
        )
