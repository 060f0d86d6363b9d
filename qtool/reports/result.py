"""What all result files share: how they are written, read back, and checked."""

import math
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from qtool.errors import InputError
from qtool.files.json_data import read_json
from qtool.files.whole import write_json

Json = dict[str, Any]  # plain data, as json reads and writes it
Seconds = float | int


class Result(BaseModel):
    """What one file says, or a part of it; frozen."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    figures: ClassVar[tuple[str, ...]] = ()
    """What people look for first, and so what is named first where it is missing."""

    def to_json(self) -> Json:
        """Return plain data with the keys that were set, in the order of the file.

        JSON has no numbers that are not finite: they become null.
        """
        return cast(Json, _finite(self.model_dump(by_alias=True, exclude_unset=True)))

    def write(self, path: Path) -> None:
        """Write the file in one move.

        Raises:
            InputError: If it cannot be written there.
        """
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return what a file says.

        Raises:
            InputError: If it is missing, no JSON, or not such a result; says what is wrong.
        """
        return cls.of(read_json(path), path)

    @classmethod
    def of(cls, data: object, source: Path) -> Self:
        """Return plain data as a result; `source` is where it comes from, for messages.

        Raises:
            InputError: If keys are missing or hold something else.
        """
        try:
            return cls.model_validate(data, strict=True)
        except ValidationError as error:
            found = [(".".join(map(str, item["loc"])), item) for item in error.errors()]
            missing = [place for place, item in found if item["type"] == "missing"]
            missing.sort(key=lambda place: place not in cls.figures)
            if missing:
                raise InputError(f"{source}: damaged, it has no {', '.join(missing)}") from error
            place, item = found[0]
            raise InputError(f"{source}: damaged, {place}: {item['msg']}") from error


def _finite(data: object) -> object:
    """Return plain data with None in place of every number that is not finite."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in cast(Json, data).items()}
    if isinstance(data, list):
        return [_finite(value) for value in cast(list[object], data)]
    return None if isinstance(data, float) and not math.isfinite(data) else data
