"""Codes in ONNX's own integers of 4 and 2 bits, for the targets that are called after them.

A Cast to int8 stands behind them: without it, no kernel of integers takes them.
"""

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from qtool.errors import MissingRuntimeError, ModelError
from qtool.export.targets.target import Array, Weights
from qtool.export.writing.packing import Codes

BITS: Mapping[Weights, int] = {"int4": 4, "int2": 2}  # of the narrowest type that a form has
TYPES = {4: ir.DataType.INT4, 2: ir.DataType.INT2}
FIRST_WITH_INT2 = "1.20"
NAMED = 3  # layers in a message


def narrowest_type(codes: Codes, weights: Weights) -> ir.DataType | None:
    """Return the narrowest type of a form that holds codes; None for int8."""
    for bits in (2, 4):
        if bits >= BITS.get(weights, 8) and _holds(codes, bits):
            return TYPES[bits]
    return None


def stored_as(codes: Codes, kind: ir.DataType) -> Array:
    """Return codes as an array of a narrow type, which is packed when it is written."""
    return codes.astype(kind.numpy())


def refuse_unheld(layers: Mapping[str, tuple[Codes, int]], weights: Weights) -> None:
    """Check that the types of a form hold the codes of all layers that are meant for them.

    Args:
        layers: name -> its codes, and the bits of their grid.
        weights: the form.

    Raises:
        MissingRuntimeError: If onnx is too old to know the type.
        ModelError: If codes of no more bits than the type has do not fit into it: those of mid_rise
            are odd, and reach twice as far. Names the layers, and the target that holds them.
    """
    if weights == "int2" and not hasattr(onnx.TensorProto, "INT2"):
        raise MissingRuntimeError(
            f"onnx {onnx.__version__} has no integers of 2 bits; "
            f'pip install "onnx>={FIRST_WITH_INT2}"'
        )
    widest: dict[int, list[str]] = {}
    for name, (codes, bits) in layers.items():
        meant = next((b for b in (2, 4) if max(bits, BITS.get(weights, 8)) <= b), 8)
        if meant < 8 and not _holds(codes, meant):
            widest.setdefault(meant, []).append(name)
    for bits, names in widest.items():
        fits = bits == 2 and all(_holds(layers[name][0], 4) for name in names)
        first = ", ".join(names[:NAMED])
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        raise ModelError(
            f"INT{bits} does not hold the odd codes of {first}{more}; export with "
            f"--target {'int4' if fits else 'onnxruntime'}"
        )


def _holds(codes: Codes, bits: int) -> bool:
    """Tell whether codes are integers of two's complement of so many bits."""
    high = 2 ** (bits - 1)
    return bool(codes.min(initial=0) >= -high and codes.max(initial=0) < high)
