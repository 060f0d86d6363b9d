"""Models as files: those that one message of protobuf cannot hold have their tensors beside it.

Such a file is NAME.onnx with its graph, and NAME.onnx.data with its tensors; runtimes and onnx.load
find the second where the first lies. Both keep their names when they are moved together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from qtool.errors import ExportError
from qtool.export.writing.file_digest import seal
from qtool.files.scratch import scratch
from qtool.files.whole import data_beside

LIMIT = 2**31 - 2**20  # bytes: what protobuf takes, less a MiB for nodes and names
SMALL = 1024  # bytes: tensors that stay in the graph, as shape inference reads them


def is_large(model: onnx.ModelProto) -> bool:
    """Tell whether the tensors of a model are too large for one message."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LIMIT


def may_grow_large(path: Path) -> bool:
    """Tell whether what a runtime unpacks from a file may be too large: 1 bit becomes 32."""
    return 32 * bytes_of(path) > LIMIT


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, and its tensors beside it where it is too large; the model stays as it is."""
    if not is_large(model):
        onnx.save(model, str(path))
        return
    data = data_beside(path)
    data.unlink(missing_ok=True)  # else tensors are put behind what it holds
    onnx.save_model(
        model, str(path), save_as_external_data=True, location=data.name, size_threshold=SMALL
    )
    load_external_data_for_model(model, str(path.parent))


@contextmanager
def loadable(model: onnx.ModelProto) -> Iterator[Path | bytes]:
    """Lend what a runtime can load a model from: its bytes, or a file where it is too large."""
    if not is_large(model):
        yield model.SerializeToString()
        return
    with scratch() as folder:
        path = folder / "model.onnx"
        save(model, path)
        yield path


def save_checked(model: onnx.ModelProto, path: Path) -> None:
    """Write a model that is what ONNX allows, with the digest of all that it holds.

    Raises:
        ExportError: If it is not; there is no file then.
    """
    large = is_large(model)
    try:
        if large:  # it can be checked as a file alone
            save(model, path)
        onnx.checker.check_model(str(path) if large else model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        for file in (path, data_beside(path)) if large else ():
            file.unlink(missing_ok=True)
        words = str(error).strip().splitlines()
        raise ExportError(
            f"the graph is no valid ONNX: {words[0] if words else error!r}"
        ) from error
    if large:
        seal(path)
    else:
        save_with_digest(model, path)


def read_back(path: Path, *, tensors: bool = True) -> onnx.ModelProto:
    """Return the model of a file that qtool has just written, or that `read_model` let through.

    Of a file of anyone, `qtool.export.reading.read_model` looks first at what it would take.

    Args:
        path: of the file.
        tensors: load those that lie in a file beside it, too.
    """
    return onnx.load(str(path), load_external_data=tensors)


def save_with_digest(model: onnx.ModelProto, path: Path) -> None:
    """Write a model and the digest of all that it holds; that it is valid is known."""
    save(model, path)
    seal(path)


def bytes_of(path: Path) -> int:
    """Return what a file takes on disk, with the tensors beside it, if it has any there."""
    graph = read_back(path, tensors=False).graph
    names = {
        entry.value
        for tensor in graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in names)))
