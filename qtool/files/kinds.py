"""What a file is, as far as its name tells: messages say it where another kind is wanted.

Names that tell nothing are left to whoever reads the contents.
"""

from collections.abc import Collection
from enum import StrEnum
from pathlib import Path

RECIPE = "recipe.yaml"
COMPARISON = "comparison.json"


class Kind(StrEnum):
    """What messages call a file or folder."""

    RUN = "a run folder"
    COMPARISON = "the folder of a comparison"
    FOLDER = "a folder"
    RECIPE = "a recipe"
    ONNX = "an ONNX file"
    SAFETENSORS = "an integer model or file of weights"
    WEIGHTS = "a torch checkpoint or file of weights"
    JSON = "a JSON file"
    LINES = "a file of JSON lines"
    PAGE = "an HTML page"
    TABLE = "a CSV table"
    IMAGE = "an image"
    ARRAYS = "a file of NumPy arrays"
    OTHER_RUNTIME = "a network of another framework"
    UNKNOWN = "a file"


FOLDERS = (Kind.RUN, Kind.COMPARISON, Kind.FOLDER)
_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    Kind.RECIPE: (".yaml", ".yml"),
    Kind.ONNX: (".onnx",),
    Kind.SAFETENSORS: (".safetensors",),
    Kind.WEIGHTS: (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar"),
    Kind.JSON: (".json",),
    Kind.LINES: (".jsonl",),
    Kind.PAGE: (".html", ".htm"),
    Kind.TABLE: (".csv",),
    Kind.IMAGE: (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    Kind.ARRAYS: (".npz", ".npy"),
    Kind.OTHER_RUNTIME: (
        *(".ort", ".tflite", ".h5", ".keras", ".pb", ".engine", ".mlmodel", ".mlpackage", ".xml"),
    ),
}
_BY_SUFFIX = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes}


def suffixes_of(*kinds: Kind) -> tuple[str, ...]:
    """Return the ends of names, in lower case, by which files of these kinds are known."""
    return tuple(suffix for kind in kinds for suffix in _SUFFIXES[kind])


def kind_named(name: str) -> Kind:
    """Return what a file of such a name is; UNKNOWN where it does not tell."""
    return _BY_SUFFIX.get(Path(name).suffix.lower(), Kind.UNKNOWN)


def kind_of(path: Path) -> Kind:
    """Return what a file or folder that is there is; UNKNOWN where its name does not tell."""
    try:
        if not path.exists():
            return Kind.UNKNOWN
        if path.is_dir():
            if (path / COMPARISON).is_file():
                return Kind.COMPARISON
            return Kind.RUN if (path / RECIPE).is_file() else Kind.FOLDER
    except (OSError, ValueError):  # no name of a file
        return Kind.UNKNOWN
    return kind_named(path.name)


def other_kind(path: Path, taken: Collection[Kind], wanted: str) -> str:
    """Return what a file is, and what is wanted instead; "" where it may be of a kind `taken`.

    Args:
        path: as it was given.
        taken: the kinds that would be right.
        wanted: the same in words, such as "a run folder or a recipe".
    """
    kind = kind_of(path)
    if kind in taken or kind is Kind.UNKNOWN:
        return ""
    said = f"{kind}; give {wanted}"
    if kind is Kind.RECIPE and Kind.RUN in taken:
        return f"{said}: train or convert it first, and give that folder"
    if kind is Kind.RUN and Kind.RECIPE in taken:
        return f"{said}, such as {path / RECIPE}"
    if kind not in FOLDERS and Kind.RUN in taken and kind_of(path.parent) is Kind.RUN:
        return f"{said}, such as {path.parent}"
    return said
