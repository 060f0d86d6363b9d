"""What all result files share: how they are written, read back, and checked."""

import ast
import inspect
import math
import textwrap
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

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
    )

    figures: ClassVar[tuple[str, ...]] = ()
    """What people look for first, and so what is named first where it is missing."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler, /
    ) -> JsonSchemaValue:
        """Describe the keys by their docstrings, read only here: pydantic would at each import."""
        schema = handler(core_schema)
        keys = handler.resolve_ref_schema(schema)["properties"]
        for kind in reversed(cls.__mro__[: cls.__mro__.index(Result)]):
            for name, said in _docstrings(kind).items():
                if name in cls.model_fields:
                    keys[cls.model_fields[name].serialization_alias or name]["description"] = said
        return schema

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


def _docstrings(kind: type) -> dict[str, str]:
    """Return what is said below each annotated name in the body of a class."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found: dict[str, str] = {}
    for one, below in pairwise(tree.body):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            match below:
                case ast.Expr(ast.Constant(str(said))):
                    found[one.target.id] = inspect.cleandoc(said)
                case _:
                    pass
    return found


def _finite(data: object) -> object:
    """Return plain data with None in place of every number that is not finite."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in cast(Json, data).items()}
    if isinstance(data, list):
        return [_finite(value) for value in cast(list[object], data)]
    return None if isinstance(data, float) and not math.isfinite(data) else data
