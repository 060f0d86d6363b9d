"""Mutated ONNX files, and the commands that read them."""

import json
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import onnx
from onnx import TensorProto, helper

from qtool.export.writing.file_digest import seal
from tests.hostile.mutations import changed_bytes, changed_data

_OPERATORS = (
    *("Relu", "Add", "Mul", "Gather", "Reshape", "Clip", "Conv", "DequantizeLinear", "Expand"),
    *("QuantizeLinear", "ConstantOfShape", "Tile", "Loop", "If", "Cast", "Concat", "NoSuchThing"),
)
_NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))


def make(random: Random, folder: Path, index: int, base: Path) -> list[str]:
    """Write a mutated ONNX file into a folder; return the command that reads it."""
    given = base / "run" / "model.onnx"
    path = folder / "m.onnx"
    if random.random() < 0.3:
        path.write_bytes(changed_bytes(given.read_bytes(), random))
    else:
        model = onnx.load(given)
        for _ in range(random.choice((1, 1, 2, 3))):
            _change(model, random)
        path.write_bytes(model.SerializeToString())
    if random.random() < 0.75:  # the rest is told by its digest
        with suppress(ValueError):  # no protobuf: it cannot hold one
            seal(path)
    return [
        ["inspect", "m.onnx"],
        ["compare", "runs", "m.onnx", "m.onnx"],
        ["inspect", "m.onnx", "--repair", "fixed.onnx"],
        ["predict", "m.onnx", str(base / "image.png")],
        ["inspect", "m.onnx", "--json"],
        ["bench", "m.onnx"],
    ][index % 10 if index % 10 < 6 else 0]


def _change(model: Any, random: Random) -> None:
    graph = model.graph
    kind = random.randrange(14)
    node = random.choice(graph.node) if graph.node else None
    item = random.choice(graph.initializer) if graph.initializer else None
    if kind == 0 and node is not None:
        node.op_type = random.choice(_OPERATORS)
    elif kind == 1 and node is not None and node.input:
        other = random.choice(graph.node)
        names = [*other.output, *other.input, "", "nowhere", node.output[0] if node.output else ""]
        node.input[random.randrange(len(node.input))] = random.choice(names)
    elif kind == 2 and node is not None:
        if random.random() < 0.5 and node.input:
            del node.input[-1]
        else:
            graph.node.remove(node)
    elif kind == 3 and item is not None:
        if item.dims and random.random() < 0.7:
            item.dims[random.randrange(len(item.dims))] = random.choice(_NUMBERS)
        else:
            item.dims.append(random.choice(_NUMBERS))
    elif kind == 4 and item is not None:
        item.data_type = random.choice(range(25))
    elif kind == 5 and item is not None:
        item.raw_data = changed_bytes(item.raw_data, random)
    elif kind == 6 and item is not None:
        item.data_location = TensorProto.EXTERNAL
        place = ("/etc/passwd", "../x", "m.onnx", "/dev/zero", "none", "m.onnx.data")
        item.external_data.add(key="location", value=random.choice(place))
        item.external_data.add(key="length", value=str(random.choice(_NUMBERS)))
    elif kind == 7 and node is not None and node.attribute:
        attribute = random.choice(node.attribute)
        attribute.i = random.choice(_NUMBERS)
        if attribute.ints:
            attribute.ints[0] = random.choice(_NUMBERS)
    elif kind == 8 and model.opset_import:
        model.opset_import[0].version = random.choice((1, 7, 12, 18, 23, 99, 2**40, -1))
    elif kind == 9 and graph.quantization_annotation:
        note = random.choice(graph.quantization_annotation)
        note.tensor_name = random.choice(("", "nowhere", note.tensor_name * 2))
        if note.quant_parameter_tensor_names:
            pair = random.choice(note.quant_parameter_tensor_names)
            words = (
                "",
                "UINT8",
                "INT9999999999",
                "UINT99999",
                "BIPOLAR",
                "x",
                item.name if item else "",
            )
            pair.value = random.choice(words)
    elif kind in (10, 11) and model.metadata_props:
        entry = random.choice(model.metadata_props)
        try:
            entry.value = json.dumps(changed_data(json.loads(entry.value), random))
        except ValueError:
            entry.value = "null"
    elif kind == 12 and (graph.input or graph.output):
        value = random.choice([*graph.input, *graph.output])
        shape = value.type.tensor_type.shape
        for dim in shape.dim:
            if random.random() < 0.5:
                dim.dim_value = random.choice(_NUMBERS)
        if random.random() < 0.3:
            del shape.dim[:]
    elif item is not None:
        graph.initializer.append(item)
        graph.node.insert(0, helper.make_node("Identity", [item.name], [item.name]))
