"""Where the weight of each layer stands in a file, whatever tools have made of it.

A weight is told by the SHA-256 of its codes, which metadata keep, and not by its name: as codes
that the graph unpacks, as plain ones, as uint8 around 128, as float weights that are codes x scale,
each perhaps transposed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from qtool.errors import QtoolError
from qtool.export.proof.constants import codes_in
from qtool.export.reading import read_model
from qtool.export.targets.target import Array, Runtime
from qtool.export.writing.layer_metadata import LayerMetadata, digest, read_layers
from qtool.export.writing.quantized_values import QuantizedValues, depending
from qtool.export.writing.weights import REAL
from qtool.numerics.saturation import MIDDLE

READERS = ("DequantizeLinear", "Cast")
WIDTHS: dict[int, int] = {  # bytes
    TensorProto.INT8: 1,
    TensorProto.UINT8: 1,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
}
FEW = 16  # numbers: shapes, and what unpacks codes
KINDS = (TensorProto.INT8, TensorProto.UINT8, TensorProto.FLOAT)


@dataclass(frozen=True)
class StoredWeight:
    """Where a layer's weight stands.

    Attributes:
        tensor: of codes, or of float weights.
        form: `unpacked` by the graph; a constant of `integers`, or of `float` weights.
        codes: int8 [shape of the layer].
        nbytes: that a constant takes; of what the graph unpacks, the largest that it is made of:
            the packed bytes, or what a tool has made of them.
        transposed: a matrix stands there by columns.
    """

    tensor: str
    form: Literal["unpacked", "integers", "float"]
    codes: Array
    nbytes: int
    transposed: bool


def stored_weights(
    model: onnx.ModelProto, layers: Mapping[str, LayerMetadata], runtime: Runtime
) -> dict[str, StoredWeight]:
    """Return where the weight of each layer stands; one that is nowhere is missing.

    Args:
        model: the file.
        layers: what its metadata say of each.
        runtime: unpacks codes.
    """
    graph = model.graph
    by_size: dict[int, dict[str, LayerMetadata]] = {}
    for name, layer in layers.items():
        by_size.setdefault(int(np.prod(layer.shape)), {})[name] = layer
    found: dict[str, StoredWeight] = {}
    unpacked = _unpacked(model, layers, runtime)
    for tensor, array in unpacked.items():
        for name, weight in _matches(tensor, array, by_size.get(array.size, {})):
            largest = _largest_part(graph, tensor)
            found.setdefault(name, replace(weight, nbytes=largest))
    for item in sorted(graph.initializer, key=lambda item: item.data_type == TensorProto.FLOAT):
        left = {n: la for n, la in by_size.get(_size(item), {}).items() if n not in found}
        if item.data_type in KINDS and left:
            array = numpy_helper.to_array(item)
            for name, weight in _matches(item.name, array, left, constant=True):
                found.setdefault(name, weight)
    return found


def lost_layers(path: Path, runtime: Runtime) -> list[str]:
    """Return the layers of a file whose codes, or whose scale or zero point, are not in it.

    Raises:
        InputError: If it is no ONNX model, or would take more than its size can.
        ValueError: If what it says of a layer cannot be read.
    """
    model = read_model(path)
    layers = {name: layer for name, layer in read_layers(model).items() if not is_real(layer)}
    found, other = stored_weights(model, layers, runtime), dict(other_scales(model, layers))
    return [name for name in layers if name not in found or name in other]


def is_real(layer: LayerMetadata) -> bool:
    """Tell whether a weight stands as real numbers, which their own operator rounds."""
    return layer.tensors.get("codes", "").endswith(REAL)


def other_scales(
    model: onnx.ModelProto, layers: Mapping[str, LayerMetadata]
) -> Iterator[tuple[str, str]]:
    """Yield layers, and which of their scales and zero points are not those of the metadata."""
    values = QuantizedValues(model.graph)
    for name, layer in layers.items():
        for part, expected in (
            ("scale", layer.sha256.scale),
            ("zero_point", layer.sha256.zero_point),
        ):
            tensor = layer.tensors.get(part, "")
            array = values.array(tensor)
            if array.size and digest(array) != expected:
                yield name, f"{tensor}: not the {part} of {name} that metadata say (SHA-256)"


def _largest_part(graph: onnx.GraphProto, tensor: str) -> int:
    """Return the bytes of the largest constant that a tensor is made of, tables left out."""
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    makers = {name: node for node in graph.node for name in node.output}
    constants, waiting, seen = {i.name: i for i in graph.initializer}, [tensor], set[str]()
    largest = 0
    while waiting:
        name = waiting.pop()
        item = constants.get(name)
        counts = item is not None and name not in tables and item.data_type in WIDTHS
        if item is not None and counts and _size(item) > FEW:
            largest = max(largest, WIDTHS[item.data_type] * _size(item))
        if name in makers and name not in seen:
            seen.add(name)
            waiting += makers[name].input
    return largest


def _size(item: onnx.TensorProto) -> int:
    return int(np.prod(item.dims)) if item.dims else 1


def _unpacked(
    model: onnx.ModelProto, layers: Mapping[str, LayerMetadata], runtime: Runtime
) -> dict[str, Array]:
    """Return what the graph makes of constants where a weight may be read."""
    graph = model.graph
    depends = depending(graph)
    made = {name for node in graph.node for name in node.output} - depends
    names = {layer.tensors.get("codes", "") for layer in layers.values()}
    read = {node.input[0] for node in graph.node if node.op_type in READERS and node.input}
    wanted = sorted(made & (names | read))
    try:
        return codes_in(model, wanted, runtime) if wanted else {}
    except QtoolError:  # operators that this runtime does not know
        return {}


def _matches(
    tensor: str, array: Array, layers: Mapping[str, LayerMetadata], *, constant: bool = False
) -> Iterator[tuple[str, StoredWeight]]:
    """Yield the layers whose weight an array is."""
    for name, layer in layers.items():
        for transposed in (False, True):
            laid_out = _laid_out(array, layer.shape, transposed=transposed)
            codes = None if laid_out is None else _codes(laid_out, layer)
            if codes is not None:
                is_float = constant and array.dtype == np.float32
                form = "float" if is_float else "integers" if constant else "unpacked"
                yield name, StoredWeight(tensor, form, codes, array.nbytes, transposed)
                break


def _laid_out(array: Array, shape: list[int], *, transposed: bool) -> Array | None:
    """Return an array in a weight's shape; None where it cannot have it."""
    if list(array.shape) == shape and not transposed:
        return array
    if transposed and array.ndim == 2 and list(array.T.shape) == shape:
        return array.T
    return None


def _codes(array: Array, layer: LayerMetadata) -> Array | None:
    """Return the codes that an array stands for; None where they are not the layer's."""
    for given in _readings(array, layer):
        inside = np.isfinite(given).all() and (np.abs(given) <= 128).all()
        codes = given.astype(np.int8) if inside else None
        if codes is not None and digest(codes) == layer.sha256.codes:
            return np.ascontiguousarray(codes)
    return None


def _readings(array: Array, layer: LayerMetadata) -> Iterator[Array]:
    """Yield what an array may be as codes."""
    if array.dtype == np.int8:
        yield array
    elif array.dtype == np.uint8:
        yield array.astype(np.int16) - MIDDLE
    elif array.dtype == np.float32:
        yield np.rint(array)
        scale = layer.scale.astype(np.float32)
        if layer.axis is not None:
            scale = scale.reshape([-1 if n == layer.axis else 1 for n in range(array.ndim)])
        with np.errstate(divide="ignore", invalid="ignore"):
            yield np.rint(np.where(scale == 0, 0, array.astype(np.float32) / scale))
