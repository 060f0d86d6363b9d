"""Layers that may saturate on processors without VNNI, and the form in which they cannot.

What can saturate is told in `qtool.numerics.saturation`. Weights as uint8 around the zero point 128
make ONNX Runtime widen bytes before it multiplies, so that sums are exact on any processor. That
takes 1.1 to 1.6 times as long without VNNI and up to 2.8 times with it, so only layers that a
network does not wait for are written so: those that compute one row for each image. README of this
room has the measurements.
"""

from collections.abc import Collection

import onnx_ir as ir
from torch import nn

from qtool.errors import ModelError
from qtool.integer.layers import IntegerConv2d, IntegerLayer, integer_layers
from qtool.numerics.saturation import can_saturate, largest_byte

NAMED = 3  # layers in a message


def saturating_layers(model: nn.Module) -> set[str]:
    """Return the integer layers that have a channel whose sums could saturate."""
    return {name for name, layer in integer_layers(model).items() if _can_saturate(layer)}


def _can_saturate(layer: IntegerLayer) -> bool:
    grid = layer.spec.input
    groups = layer.groups if isinstance(layer, IntegerConv2d) else 1
    if grid is None or layer.spec.weight is None:
        return False
    return bool(can_saturate(layer.codes, largest_byte(grid), groups=groups).any())


def refuse_saturating(layers: Collection[str], title: str) -> None:
    """Check that no layer could saturate, for a runtime that has no form for it.

    Args:
        layers: that could.
        title: of the runtime.

    Raises:
        ModelError: If some could; names them, and what rounds their channels anew.
    """
    if layers:
        first = ", ".join(sorted(layers)[:NAMED])
        more = f" and {len(layers) - NAMED} more" if len(layers) > NAMED else ""
        raise ModelError(
            f"{title} would saturate in {first}{more} on processors without VNNI; convert with "
            f"--no-saturation, or qtool.convert(model, saturation='avoid'), and export that"
        )


def computes_one_row(weight: ir.Value, batch: object) -> bool:
    """Tell whether all that read a weight compute one row, or one pixel, for each image.

    Args:
        weight: of a traced graph, after DequantizeLinear.
        batch: the first dimension of the graph's input.
    """
    readers = weight.consumers()
    return bool(readers) and all(_one_row(reader, batch) for reader in readers)


def _one_row(node: ir.Node, batch: object) -> bool:
    made = node.outputs[0]
    if node.op_type in ("Transpose", "Reshape"):
        return computes_one_row(made, batch)
    shape = made.shape
    if shape is None:
        return False
    if node.op_type == "Conv":
        return list(shape)[2:] == [1, 1]
    linear = node.op_type in ("Gemm", "MatMul")
    return linear and len(shape) == 2 and shape[0] == batch
