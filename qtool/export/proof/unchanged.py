"""What a runtime makes of a file's weights, read from its own optimized graph.

A weight that qtool calls float must stand there as float32: as it is, or multiplied by one number
for each channel, as a runtime does that folds a batch norm into it. Codes must stand there as they
are, or dequantized. Anything else was quantized anew, or is not what was proven.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Protocol

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from qtool.errors import ExportError
from qtool.export.targets.target import Array, Runtime
from qtool.export.writing.annotation import tensor_names
from qtool.export.writing.float_weights import WEIGHTED
from qtool.export.writing.weights import part_of
from qtool.limits import OTHER_WEIGHTS, QUANTIZED_ANEW
from qtool.numerics.weight_rows import WeightRows

ROUNDING = 1e-6  # of a channel's largest weight: three products in float32
UNSIGNED = 128  # what a runtime adds to int8 codes that it stores as uint8


class HasCodes(Protocol):
    """A layer or join with weights of its own.

    Attributes:
        codes: int8, or float32 where they were left float.
        layout: how the rows of the weight, one for each output channel, lie in it.
        bias: int32 or float32; None where there is none.
    """

    codes: Tensor
    layout: WeightRows
    bias: Tensor | None


def check_weights(
    model: onnx.ModelProto, layers: Mapping[str, HasCodes], runtime: Runtime
) -> list[str]:
    """Check that the runtime computes with the weights and biases of the integer model.

    Args:
        model: the file.
        layers: of the integer model, by name, and joins with codes of their own, by site.
        runtime: whose optimized graph is read.

    Returns:
        What is worth a note: float weights of other parts that the runtime joins with others.

    Raises:
        ExportError: If it quantized a weight or bias by itself; names the layers.
    """
    made = runtime.optimized(model)
    constants = _constants(made)
    names, stored = tensor_names(model.graph), _by_size(_constants(model.graph))
    written = {  # a layer that no pass calls is not
        name: codes
        for name, layer in layers.items()
        for codes in [layer.codes.cpu().numpy()]
        if {part_of(name, "codes"), part_of(name, "codes_of_file")} & names
        or _stands(codes, stored, layer.layout)
    }
    there = _by_size(constants)
    lost = [name for name, w in written.items() if not _stands(w, there, layers[name].layout)]
    kernels = (*runtime.integer_kernels, "DequantizeLinear")
    read = [(n, constants[i]) for n in made.node if n.op_type in kernels for i in n.input
            if i in constants]  # fmt: skip
    rows = {name: _rows(codes, layers[name].layout) for name, codes in written.items()}
    codes = _by_size(written, rows)
    biases = [layer.bias.cpu().numpy() for layer in layers.values() if layer.bias is not None]
    for node, array in read:
        new_codes = array.dtype in (np.int8, np.uint8) and array.ndim > 1
        new_bias = array.dtype == np.int32 and not _is_one_of(array, biases)
        if new_bias or (new_codes and not _is_code(array, codes)):
            what = "bias" if new_bias else "weight"
            found = lost or [_owner(node, constants, written)]
            said = {"layer": _named(found), "runtime": runtime.title, "tensor": what}
            raise ExportError(QUANTIZED_ANEW.text(**said))
    if lost:
        raise ExportError(OTHER_WEIGHTS.text(layer=_named(lost), runtime=runtime.title))
    return _notes(model, there, runtime)


def _notes(model: onnx.ModelProto, there: dict[int, list[Array]], runtime: Runtime) -> list[str]:
    """Return one note for each float weight of the file that the runtime has not as it is."""
    read = {name for node in model.graph.node if node.op_type in WEIGHTED for name in node.input}
    floating = {
        item.name: numpy_helper.to_array(item)
        for item in model.graph.initializer
        if item.name in read and item.data_type == onnx.TensorProto.FLOAT and len(item.dims) > 1
    }
    return [
        f"{name}: {runtime.title} joins this float weight with others"
        for name, array in floating.items()
        if not _stands(array, there, WeightRows())
    ]


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    return {item.name: numpy_helper.to_array(item) for item in graph.initializer}


def _by_size(*arrays: Mapping[str, Array]) -> dict[int, list[Array]]:
    """Return arrays of more than one dimension by their number of elements."""
    found: dict[int, list[Array]] = {}
    for array in chain(*(named.values() for named in arrays)):
        if array.ndim > 1:
            found.setdefault(array.size, []).append(array)
    return found


def _stands(weight: Array, there: dict[int, list[Array]], layout: WeightRows) -> bool:
    """Tell whether a weight is among arrays, as it is or times one number for each channel."""
    rows = _rows(weight, layout)
    for array in there.get(weight.size, []):
        if array.dtype != np.float32:
            if weight.dtype == np.int8 and _is_code(array, {weight.size: [weight, rows]}):
                return True
        elif any(_is_multiple(_rows(o, layout), rows) for o in _laid_out(array, weight.shape)):
            return True
    return False


def _rows(weight: Array, layout: WeightRows) -> Array:
    """Return the rows of a weight, one for each output channel."""
    return layout.rows(torch.from_numpy(np.array(weight))).numpy() if layout.transposed else weight


def _is_code(array: Array, codes: dict[int, list[Array]]) -> bool:
    """Tell whether integers are a layer's codes, perhaps transposed or shifted to uint8."""
    shifts = (0, UNSIGNED) if array.dtype == np.uint8 else (0,)
    return any(
        np.array_equal(laid_out, one.astype(np.int16) + shift)
        for one in codes.get(array.size, [])
        for laid_out in _laid_out(array, one.shape)
        for shift in shifts
    )


def _is_one_of(array: Array, arrays: list[Array]) -> bool:
    flat = array.reshape(-1)
    return any(np.array_equal(flat, one.reshape(-1)) for one in arrays if one.dtype == array.dtype)


def _laid_out(array: Array, shape: tuple[int, ...]) -> list[Array]:
    """Return an array in a weight's shape: as it lies, and as the transpose of a matrix."""
    found = [array.reshape(shape)]
    columns = int(np.prod(shape[1:]))
    if array.shape == (columns, shape[0]):
        found.append(array.T.reshape(shape))
    return found


def _is_multiple(array: Array, weight: Array) -> bool:
    """Tell whether each row is the weight's, times one number, but for float32's last digits."""
    rows, given = (x.reshape(len(x), -1).astype(np.float64) for x in (weight, array))
    peak = np.abs(rows).argmax(1, keepdims=True)
    largest = np.take_along_axis(rows, peak, 1)
    factor = np.take_along_axis(given, peak, 1) / np.where(largest == 0, 1, largest)
    return bool((np.abs(given - factor * rows) <= ROUNDING * np.abs(factor * largest)).all())


def _owner(
    node: onnx.NodeProto, constants: Mapping[str, Array], written: Mapping[str, Array]
) -> str:
    """Return the layer whose codes a node reads, or the node's own name."""
    for name in node.input:
        array = constants.get(name)
        for layer, codes in written.items():
            if array is not None and array.ndim > 1 and _is_code(array, {codes.size: [codes]}):
                return layer
    return node.name


def _named(layers: list[str]) -> str:
    return ", ".join(layer or "the model itself" for layer in layers)
