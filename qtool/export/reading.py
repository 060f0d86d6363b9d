"""ONNX files of anyone, read in one way: sizes before contents, and nothing outside their folder.

A message of two bytes takes a hundred times as much once it is parsed, a tensor may name any file
as its own, and a graph may blow one number up to gigabytes: each is known before it happens.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import onnx
from onnx import TensorProto, shape_inference
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from qtool.errors import InputError
from qtool.export.writing.file_digest import MOST_BYTES, SHARED
from qtool.export.writing.quantized_values import depending
from qtool.export.writing.wire import varint
from qtool.files.reading import read_bounded

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

MOST_PARTS = 500_000  # fields of all messages; networks have some 50,000
DEEPEST = 64  # messages inside each other
FREE = 256 * 2**20  # bytes that a graph may make of constants, however small its file is
UNPACKED = 128  # times that they may be larger than their file; 1 bit becomes 32, in some steps
LARGEST = 8 * 2**30  # bytes of one tensor of fixed sizes
SMALL = 4096  # bytes of a tensor that may be a shape
GROWING = (
    *("ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize", "Upsample", "OneHot"),
    *("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "CenterCropPad"),
)
"""Operators whose results can be of any size, whatever they are given."""
PASSING = (
    *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split"),
    *("Concat", "Shape", "Size", "Abs", "Neg", "Floor", "Ceil", "Round"),
)
"""Operators whose results are no larger than all that they are given."""
WIDEST = 16  # bytes of one number
BITS: dict[int, int] = {
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL), 8),
    **dict.fromkeys((TensorProto.INT16, TensorProto.UINT16, TensorProto.FLOAT16), 16),
    **dict.fromkeys((TensorProto.BFLOAT16,), 16),
    **dict.fromkeys((TensorProto.INT32, TensorProto.UINT32, TensorProto.FLOAT), 32),
    **dict.fromkeys((TensorProto.INT64, TensorProto.UINT64, TensorProto.DOUBLE), 64),
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
}
FEW = 4  # bits, and the most numbers of other types that a byte holds
TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def read_model(path: Path, *, tensors: bool = True) -> onnx.ModelProto:
    """Return the model of a file.

    Args:
        path: of the file.
        tensors: load those that lie in a file beside it, too.

    Raises:
        InputError: If it is missing, no model, or holds what its size, or its folder, cannot.
    """
    try:
        data = read_bounded(path, MOST_BYTES)
        size = len(data)
        _check_parts(memoryview(data))
        model = onnx.load_model_from_string(data)
        del data
        for tensor in _tensors(model):
            _refuse_other_size(tensor, path)
        _refuse_repeats(model, path)
        _refuse_growth(model, size)
        if tensors:
            load_external_data_for_model(model, str(path.parent))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    # protobuf and onnx raise errors of their own, with no common ancestor
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not an ONNX model: {reason}") from error
    return model


def _check_parts(data: memoryview) -> None:
    """Check how many fields a message of ModelProto has, how deep they lie, and that text is text.

    Raises:
        ValueError: If there are too many, they are not where they say, or a name is no UTF-8:
            protobuf would give it as bytes where everyone expects a string.
    """
    left, waiting = MOST_PARTS, [(0, len(data), cast("Descriptor", onnx.ModelProto.DESCRIPTOR), 0)]
    while waiting:
        at, end, kind, depth = waiting.pop()
        if depth > DEEPEST:
            raise ValueError(f"messages more than {DEEPEST} deep")
        inner, texts = _fields(kind)
        part = data[:end]
        while at < end:
            left -= 1
            if left < 0:
                raise ValueError(f"more than {MOST_PARTS:,} parts")
            key, at = varint(part, at)
            wire = key & 7
            if wire == 0:
                _, at = varint(part, at)
            elif wire == 2:
                length, at = varint(part, at)
                if at + length > end:
                    raise ValueError("a part is longer than the file")
                if key >> 3 in inner:
                    waiting.append((at, at + length, inner[key >> 3], depth + 1))
                elif key >> 3 in texts:
                    str(data[at : at + length], "utf-8")
                at += length
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:
                raise ValueError("a part is of no kind that protobuf knows")
        if at > end:
            raise ValueError("a part is longer than the file")


_KNOWN: dict[str, "tuple[dict[int, Descriptor], frozenset[int]]"] = {}


def _fields(kind: "Descriptor") -> "tuple[dict[int, Descriptor], frozenset[int]]":
    """Return the fields of a message that are messages, and those that are text, by number."""
    if kind.full_name not in _KNOWN:
        inner = {field.number: field.message_type for field in kind.fields if field.message_type}
        texts = {field.number for field in kind.fields if field.type == field.TYPE_STRING}
        _KNOWN[kind.full_name] = inner, frozenset(texts)
    return _KNOWN[kind.full_name]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of a model, those in attributes and inner graphs, too."""
    graphs = [model.graph]
    nodes = [node for function in model.functions for node in function.node]
    while graphs or nodes:
        for graph in graphs:
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
            nodes += graph.node
        graphs = []
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                graphs += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
        nodes = []


def _refuse_other_size(tensor: onnx.TensorProto, path: Path) -> None:
    """Check that a tensor is as large as its shape, wherever it lies.

    Raises:
        ValueError: If it is not, or lies outside the file's folder.
    """
    name = tensor.name[:60] or "a tensor"
    if any(size < 0 for size in tensor.dims):
        raise ValueError(f"{name} has a negative size")
    numbers = math.prod(tensor.dims)
    if uses_external_data(tensor):
        _refuse_place(tensor, path, name, -(-numbers * _bits(tensor) // 8))
    elif tensor.HasField("raw_data"):
        said, held = -(-numbers * _bits(tensor) // 8), len(tensor.raw_data)
        if said != held and tensor.data_type in BITS:
            raise ValueError(f"{name} takes {said:,} bytes, as its shape says, and has {held:,}")
        if numbers > FEW * held:
            raise ValueError(f"{name} has {numbers:,} numbers, as it says, in {held:,} bytes")
    elif numbers > FEW * (held := sum(len(getattr(tensor, field)) for field in TYPED)):
        raise ValueError(f"{name} has {numbers:,} numbers, as its shape says, and holds {held:,}")


def _bits(tensor: onnx.TensorProto) -> int:
    return BITS.get(tensor.data_type, 8 // FEW)


def _refuse_place(tensor: onnx.TensorProto, path: Path, name: str, needed: int) -> None:
    """Check that a tensor's bytes lie in a file beside the model, which has as many."""
    said = {entry.key: entry.value for entry in tensor.external_data}
    place = said.get("location", "")
    folder, file = path.parent.resolve(), (path.parent / place).resolve()
    if not place or Path(place).is_absolute() or not file.is_relative_to(folder):
        raise ValueError(f"{name} lies in {place[:60]!r}, which is not beside the file")
    if not file.is_file():
        raise ValueError(f"{name} lies in {place[:60]}, which is no file")
    begins = _number(said.get("offset", "0"))
    length = _number(said["length"]) if "length" in said else file.stat().st_size - begins
    if begins + length > file.stat().st_size or length < needed or length > 8 * needed:
        raise ValueError(f"{name} takes {needed:,} bytes, and {place[:60]} has others there")
    if tensor.data_type in BITS and length != needed:
        raise ValueError(f"{name} takes {needed:,} bytes, as its shape says, not {length:,}")


def _refuse_repeats(model: onnx.ModelProto, path: Path) -> None:
    """Check that tensors do not all take the same bytes of a file beside the model.

    Raises:
        ValueError: If together they take many times what their files hold.
    """
    files, needed = set[Path](), 0
    for tensor in filter(uses_external_data, _tensors(model)):
        files.update(path.parent / e.value for e in tensor.external_data if e.key == "location")
        needed += -(-math.prod(tensor.dims) * _bits(tensor) // 8)
    held = sum(file.stat().st_size for file in files)
    if needed > SHARED * held:
        raise ValueError(f"its tensors take {needed:,} bytes beside it, and {held:,} are there")


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 18:
        raise ValueError(f"{text[:20]!r} is no number of bytes")
    return int(text)


def _refuse_growth(model: onnx.ModelProto, size: int) -> None:
    """Check how large the tensors become that a runtime makes of a model before it runs.

    Shapes are those that ONNX infers without computing values: to compute them would be to do what
    is to be found out. Where a shape of constants is not told, it is taken for the largest that an
    operator can make.

    Raises:
        ValueError: If constants become much larger than their file, or how large is not told.
    """
    slim = _slim(model)
    try:
        graph = shape_inference.infer_shapes(slim).graph
    except Exception:  # a graph that is wrong elsewhere, which the checker says better
        graph = slim.graph
    sizes = {item.name: _bits(item) * math.prod(item.dims) // 8 for item in graph.initializer}
    for value in (*graph.value_info, *graph.output, *graph.input):
        if (nbytes := _bytes_of(value.type.tensor_type)) is not None:
            sizes.setdefault(value.name, nbytes)
    depends, made = depending(graph), 0
    for node in graph.node:
        constant = depends.isdisjoint(node.output)
        for name in filter(None, node.output):
            if constant and name not in sizes:
                sizes[name] = _most_of(node, sizes)
            if sizes.get(name, 0) > LARGEST:
                raise ValueError(f"{name[:60]} takes {sizes[name]:,} bytes")
            made += sizes[name] if constant else 0
        if made > max(FREE, UNPACKED * size):
            raise ValueError(f"its constants become {made:,} bytes, and it has {size:,}")


def _most_of(node: onnx.NodeProto, sizes: Mapping[str, int]) -> int:
    """Return the most bytes that an operator makes of constants, if the shape is not told.

    Raises:
        ValueError: If there is no such number.
    """
    if node.op_type in GROWING or any(a.HasField("g") or a.graphs for a in node.attribute):
        name = node.output[0][:60]
        raise ValueError(f"how large {name} becomes is not told, by {node.op_type[:60]}")
    given = [max(sizes.get(name, WIDEST), 1) for name in node.input if name]
    return (sum if node.op_type in PASSING else math.prod)(given)


def _slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model without the contents of tensors that are no shapes."""
    slim = onnx.ModelProto(ir_version=model.ir_version, functions=model.functions)
    slim.opset_import.extend(model.opset_import)
    graph = slim.graph
    graph.name = model.graph.name
    for part in ("node", "input", "output", "value_info"):
        getattr(graph, part).extend(getattr(model.graph, part))
    for item in model.graph.initializer:
        if item.ByteSize() <= SMALL:
            graph.initializer.append(item)
        else:
            graph.initializer.add(name=item.name, data_type=item.data_type, dims=item.dims)
    return slim


def _bytes_of(kind: "onnx.TypeProto.Tensor") -> int | None:
    """Return the bytes of a tensor of a type; None where a size is open."""
    if not kind.HasField("shape"):
        return None
    dims = kind.shape.dim
    if not all(dim.HasField("dim_value") for dim in dims):
        return None
    return math.prod(max(dim.dim_value, 0) for dim in dims) * BITS.get(kind.elem_type, 8) // 8
