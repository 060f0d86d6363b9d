"""`quantization_annotation` and metadata: write, read, lint.

The field says which tensors hold the scale and zero point of a quantized tensor; `finn_datatype`
adds the width for QONNX and FINN. Many tools drop the field in silence, so widths, estimators and
the recipe stand in `metadata_props` too.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from qtool import __version__
from qtool.files.json_data import parse_json
from qtool.images.usage import Usage

SCALE = "SCALE_TENSOR"
ZERO_POINT = "ZERO_POINT_TENSOR"
DATATYPE = "finn_datatype"
METADATA = "qtool"
WIDEST = 64  # bits of an integer type; a name can say any number
NAMED = {"BIPOLAR": (-1, 1), "TERNARY": (-1, 1), "BINARY": (0, 1)}


@dataclass(frozen=True)
class Annotation:
    """What is said of one quantized tensor: names of tensors in the graph, and its datatype."""

    tensor: str
    scale: str
    zero_point: str
    datatype: str


def write_annotations(graph: onnx.GraphProto, annotations: list[Annotation]) -> None:
    """Replace the graph's annotations."""
    del graph.quantization_annotation[:]
    for item in annotations:
        entry = graph.quantization_annotation.add(tensor_name=item.tensor)
        pairs = ((SCALE, item.scale), (ZERO_POINT, item.zero_point), (DATATYPE, item.datatype))
        for key, value in pairs:
            entry.quant_parameter_tensor_names.add(key=key, value=value)


def read_annotations(graph: onnx.GraphProto) -> list[Annotation]:
    """Return the graph's annotations; "" for a part that is missing."""
    found = []
    for entry in graph.quantization_annotation:
        said = {pair.key: pair.value for pair in entry.quant_parameter_tensor_names}
        parts = (said.get(key, "") for key in (SCALE, ZERO_POINT, DATATYPE))
        found.append(Annotation(entry.tensor_name, *parts))
    return found


def range_of_datatype(name: str) -> tuple[int, int] | None:
    """Return the smallest and the largest integer of a `finn_datatype`; None for no integers."""
    if name in NAMED:
        return NAMED[name]
    found = re.fullmatch(r"(U?)INT([1-9][0-9]?)", name)
    if found is None or int(found[2]) > WIDEST:
        return None
    bits = int(found[2])
    return (0, 2**bits - 1) if found[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def made_of(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return what made a file: the version of qtool, and the SHA-256 of the recipe, if any.

    The hash is of the recipe as JSON with sorted keys and no spaces.
    """
    found = {"version": __version__}
    if "recipe" in metadata:
        said = json.dumps(metadata["recipe"], sort_keys=True, separators=(",", ":"))
        found["recipe_sha256"] = hashlib.sha256(said.encode()).hexdigest()
    return found


def write_metadata(
    model: onnx.ModelProto, data: Mapping[str, object], usage: Usage | None = None
) -> None:
    """Put qtool's description of the model, as JSON, into metadata_props, and how it is used."""
    for key, value in {
        METADATA: json.dumps(data, separators=(",", ":")),
        **(usage or Usage()).metadata(),
    }.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value


def read_metadata(model: onnx.ModelProto) -> dict[str, Any]:
    """Return qtool's description of the model, or {} for a file that others wrote."""
    for entry in model.metadata_props:
        if entry.key == METADATA:
            try:
                data = parse_json(entry.value)
            except ValueError:
                return {}
            return data if isinstance(data, dict) else {}
    return {}


def tensor_names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all tensors of a graph."""
    names = {item.name for item in (*graph.initializer, *graph.input)}
    return names | {name for node in graph.node for name in node.output}
