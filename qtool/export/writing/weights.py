"""How a layer's weight stands in the graph: packed at its true width, and in the fastest form.

A layer that a runtime can run in integers keeps DequantizeLinear on its weight and bias; any other
gets its weight unpacked to float by Mul, which the runtime folds once, when it loads the file.
"""

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qtool.export.targets.target import Array, Target
from qtool.export.writing.annotation import Annotation
from qtool.export.writing.insert import insert_constant, insert_node
from qtool.export.writing.native import narrowest_type, stored_as
from qtool.export.writing.packing import Layout, pack
from qtool.export.writing.saturation import computes_one_row
from qtool.export.writing.unpacking import SharedConstants, Unpacker
from qtool.integer.layers import LayerSpec
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.saturation import MIDDLE

LAYER, ROLE = "qtool.layer", "qtool.role"  # how traced nodes are marked
WIDE = "qtool.wide"  # the mark of values whose codes take all eight bits, whatever their grid
# behind a site's name: its gate's values, the same values elsewhere, its weight
GATE, REPEATED, WEIGHT = ".gate", ".repeated", ".weight"
MANY_CHANNELS = 64  # whose scales take more bytes than the operator that computes them
REAL = ".values"  # behind the name of codes: the real values that stand in their place
GATE_GRID = IntegerGrid(8, "unsigned")


class Stored(NamedTuple):
    """Where a layer's codes stand in the file: the name of their tensor, "" for none; bytes.

    The zero point is what the file adds to the codes: 128 where they stand as uint8.
    """

    codes: str
    packed_bytes: int
    zero_point: int = 0


class WeightWriter:
    """Rewrites the weights of a traced graph, layer by layer."""

    def __init__(self, model: ir.Model, target: Target) -> None:
        self._model, self._graph, self._target = model, model.graph, target
        self._constants = SharedConstants(model.graph)
        self._unpacker = Unpacker(model.graph, self._constants)
        marks = [(n.metadata_props.get(LAYER), n.metadata_props.get(ROLE), n) for n in model.graph]
        self._marked: dict[tuple[str, str | None], list[ir.Node]] = {}
        for layer, role, node in marks:
            if layer is not None:
                self._marked.setdefault((layer, role), []).append(node)
        self._nodes = {key: nodes[-1] for key, nodes in self._marked.items()}
        self._annotations: dict[str, list[Annotation]] = {}
        self._shared_codes: set[ir.Value] = set()

    @property
    def table_bytes(self) -> int:
        """Return what the tables take on disk, which all layers share."""
        return self._unpacker.table_bytes

    def write(
        self, spec: LayerSpec, layout: Layout | None = None, *, saturates: bool = False
    ) -> Stored:
        """Store one layer's codes; return the name of their tensor, and their bytes.

        Codes that could saturate become uint8, where the target has a use for it and that is cheap.

        Args:
            spec: of the layer.
            layout: how its codes share bytes; None where they stand as they are.
            saturates: whether the layer could saturate.
        """
        self._annotations[spec.name] = self.input_annotation(spec.name, spec.input)
        grid = spec.weight
        if grid is None:
            return Stored("", 4 * spec.weights)
        dequantize = self._nodes.get((spec.name, "weight"))
        if dequantize is None:  # a layer with the very same weights holds this one's too
            return Stored("", 0)
        codes_value, scale, zero_point = (value for value in dequantize.inputs if value is not None)
        codes: Array = _array(codes_value).astype(np.int8)
        name, zero, datatype = part_of(spec.name, "codes"), 0, grid.finn_datatype
        codes_value.name = f"{name}.plain" if layout else name
        if saturates and self._target.unsigned and self._computes_one_row(dequantize):
            zero, datatype = MIDDLE, "UINT8"
            codes_value.name = f"{name}.signed"
        zeros = np.full_like(_array(zero_point), zero, np.uint8 if zero else np.int8)
        zero_point = self._constants.get(f"zero_points.{zeros.size}", zeros)
        dequantize.replace_input_with(2, zero_point)
        native = None if zero else narrowest_type(codes, self._target.weights)
        if layout:
            packed = pack(codes, layout, zero)
            nbytes = packed.nbytes
            codes_value = self._unpacker.unpack(packed, name, dequantize)
        elif native is not None:
            nbytes = -(-codes.size * native.bitwidth // 8)
            codes_value.name = f"{name}.plain"
            narrow = stored_as(codes, native)
            given = insert_constant(self._graph, f"{name}.{native.name.lower()}", narrow)
            codes_value = insert_node("Cast", [given], name, dequantize, to=ir.DataType.INT8)
        else:
            nbytes = codes.nbytes
            if zero:
                shifted = (codes.astype(np.int16) + zero).astype(np.uint8)
                codes_value = insert_constant(self._graph, name, shifted)
        dequantize.replace_input_with(0, codes_value)
        self._annotations[spec.name].append(
            Annotation(name, str(scale.name), str(zero_point.name), datatype)
        )
        return Stored(name, nbytes, zero)

    def _computes_one_row(self, dequantize: ir.Node) -> bool:
        batches = [value.shape[0] for value in self._graph.inputs if value.shape]
        return bool(batches) and computes_one_row(dequantize.outputs[0], batches[0])

    def annotations(self, spec: LayerSpec) -> list[Annotation]:
        """Return what there is to say of the layer's input and weight."""
        return self._annotations[spec.name]

    def site_annotations(self, site: str, grid: IntegerGrid | None) -> list[Annotation]:
        """Return what there is to say of values that a site rounds, and of weights that it has."""
        found = self.input_annotation(site, grid) + self.input_annotation(f"{site}{REPEATED}", grid)
        found += self.input_annotation(f"{site}{GATE}", GATE_GRID)
        for dequantize in self._marked.get((site, "weight"), []):
            codes, scale, zero_point = (v for v in dequantize.inputs if v is not None)
            if codes in self._shared_codes:  # the same numbers, which torch.onnx holds once
                continue
            self._shared_codes.add(codes)
            codes.name = f"{site}{WEIGHT}"
            names = (str(codes.name), str(scale.name), str(zero_point.name))
            found.append(Annotation(*names, "INT8"))
        return found

    def _multiply_bias_scales(self) -> None:
        """Let the scales of a bias be the product of two others, where that is shorter."""
        for (layer, role), nodes in self._marked.items():
            weight = self._nodes.get((layer, "weight"))
            for bias in nodes if role == "bias" and weight is not None else []:
                scale, own = bias.inputs[1], weight.inputs[1] if weight is not None else None
                given = None if weight is None else _scale_of_input(weight)
                if bias.graph is None or given is None or scale is None or own is None:
                    continue
                product = np.multiply(_array(own), _array(given), dtype=np.float32)
                if scale.const_value is None or product.size < MANY_CHANNELS:
                    continue
                if np.array_equal(product, _array(scale)):
                    made = insert_node("Mul", [own, given], f"{scale.name}.product", bias)
                    bias.replace_input_with(1, made)

    def finish(self) -> None:
        """Drop what is no longer used, and torch's notes on where each node came from."""
        self._multiply_bias_scales()
        RemoveUnusedNodesPass()(self._model)
        self._model.metadata_props.clear()
        self._graph.metadata_props.clear()
        self._graph.doc_string = None
        for node in self._graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()

    def unpack_to_float(self, name: str, ndim: int) -> None:
        """Replace DequantizeLinear of weight [ndim] and bias by Sub and Mul, which runtimes fold.

        The float weight is called `NAME.weight`.
        """
        dequantize = self._nodes.get((name, "weight"))
        if dequantize is None:
            return
        codes, scale, zero_point = (value for value in dequantize.inputs if value is not None)
        axis = dequantize.attributes["axis"].as_int()
        shape = np.array([-1 if place == axis else 1 for place in range(ndim)], np.int64)
        column = insert_constant(self._graph, part_of(name, "column"), shape)
        parts = {}
        for label, value in (("codes_float", codes), ("zero_float", zero_point)):
            parts[label] = insert_node(
                "Cast", [value], part_of(name, label), dequantize, to=ir.DataType.FLOAT
            )
        zero = insert_node(
            "Reshape", [parts["zero_float"], column], part_of(name, "zero_column"), dequantize
        )
        factor = insert_node("Reshape", [scale, column], part_of(name, "scale_column"), dequantize)
        steps = insert_node("Sub", [parts["codes_float"], zero], part_of(name, "steps"), dequantize)
        weight = insert_node("Mul", [steps, factor], part_of(name, "weight"), dequantize)
        ir.convenience.replace_all_uses_with(dequantize.outputs[0], weight)
        self._graph.remove(dequantize, safe=True)
        bias = self._nodes.get((name, "bias"))
        if bias is not None and bias.graph is not None and not self._shared(bias, weight):
            codes32, bias_scale = (_array(v) for v in bias.inputs if v is not None)
            real = codes32.astype(np.float32) * bias_scale
            new = insert_constant(self._graph, part_of(name, "float_bias"), real.astype(np.float32))
            ir.convenience.replace_all_uses_with(bias.outputs[0], new)
            self._graph.remove(bias, safe=True)

    def _shared(self, bias: ir.Node, weight: ir.Value) -> bool:
        """Tell whether a bias serves operators that do not use this weight."""
        users = {id(user) for user in weight.consumers()}
        return any(id(user) not in users for user in bias.outputs[0].consumers())

    def input_annotation(self, owner: str, grid: IntegerGrid | None) -> list[Annotation]:
        """Return what there is to say of the quantized values that a layer or a ReLU marked.

        A layer that is called several times has an input for each call.
        """
        found: list[Annotation] = []
        for node in self._marked.get((owner, "real_input"), []) if grid is not None else []:
            quantized, scale, zero_point = node.inputs
            assert grid is not None
            assert quantized is not None
            assert scale is not None
            assert zero_point is not None
            name = f"{owner}.codes" if ":" in owner else part_of(owner, "input_codes")
            quantized.name = f"{name}.{len(found)}" if found else name
            names = (str(quantized.name), str(scale.name), str(zero_point.name))
            # a signed grid is stored as uint8 around 128, so its codes need all eight bits
            wide = grid.signed or WIDE in node.metadata_props
            found.append(Annotation(*names, "UINT8" if wide else grid.finn_datatype))
        return found


def _scale_of_input(weight: ir.Node) -> ir.Value | None:
    """Return the one scale of what the reader of a dequantized weight multiplies it by."""
    for reader in weight.outputs[0].consumers():
        value = reader.inputs[0]
        while value is not None and (maker := value.producer()) is not None:
            scale = maker.inputs[1] if maker.op_type == "DequantizeLinear" else None
            if scale is not None and scale.const_value is not None:
                return scale if not scale.const_value.shape.rank() else None
            value = maker.inputs[0] if maker.inputs else None
    return None


def part_of(layer: str, part: str) -> str:
    """Return the name of a layer's tensor; a model that is itself a layer has no name."""
    return f"{layer}.{part}" if layer else part


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return a model as ONNX's own message."""
    proto = ir.to_proto(model)
    assert isinstance(proto, onnx.ModelProto)
    return proto


def _array(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None
    return value.const_value.numpy()
