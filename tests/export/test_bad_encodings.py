"""A zoo of encodings that runtimes get wrong, slow, or not at all: each is caught by what should.

Each is made of a good file by a small rewrite, as other tools and earlier exporters write it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import qtool
from qtool.errors import QtoolError
from qtool.export.proof.control import finding
from qtool.export.proof.gate import check_codes
from qtool.export.proof.lint import lint
from qtool.export.proof.unchanged import check_weights
from qtool.export.proof.verdict import judged
from qtool.export.proof.why_slow import Known, kernels_of
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing.annotation import read_metadata
from qtool.export.writing.onnx_qdq import export_onnx
from qtool.integer.converted import converted_state
from qtool.integer.layers import integer_layers

RUNTIME = OnnxRuntime()
IMAGES = torch.randn(48, 3, 6, 6, generator=torch.Generator().manual_seed(5))
LABELS = torch.arange(48) % 8


class Net(nn.Module):
    """Two convolutions and their sum, a pooling and a head: [B, 3, 6, 6] to [B, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = (x + self.second(x)).relu()
        return self.head(torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


@dataclass(frozen=True)
class Good:
    """A file that is right, and the integer model that it was made of."""

    model: onnx.ModelProto
    integer: nn.Module

    def caught_by(self, model: onnx.ModelProto, folder: Path) -> list[str]:
        """Return what finds fault with a file of the same integer model."""
        path = folder / "m.onnx"
        onnx.save(model, str(path))
        return [f"{kind}: {what}" for kind, what in self._found(path, model)]

    def _found(self, path: Path, model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
        tensors = {la["name"]: la["codes"] for la in read_metadata(self.model)["layers"]}
        try:
            check_codes(path, self.integer, tensors, RUNTIME)
            check_weights(model, integer_layers(self.integer), RUNTIME)
            compared, _ = judged(path, self.integer, lambda: [(IMAGES, LABELS)], RUNTIME)
            if compared.agreement.disagreement:
                yield "gate", compared.agreement.disagreement
            control = compared.outputs[compared.shown].control_difference
            yield from (("health", one.says) for one in finding(compared.agreement, control))
            known = Known.of(converted_state(self.integer))
            slow = kernels_of(path, RUNTIME.optimized(path), RUNTIME, known).why_slow
            if any(not one.by_design for one in slow):
                yield "strict", ", ".join(one.name for one in slow)
        except QtoolError as error:
            yield "gate", str(error)
        try:
            yield from (("lint", problem) for problem in lint(model, RUNTIME))
        except QtoolError as error:
            yield "lint", str(error)


def exported(bits: int, activations: dict[str, object], path: Path) -> Good:
    torch.manual_seed(3)
    section = {"weights": {"bits": bits}, "activations": activations}
    integer = qtool.convert(qtool.prepare(Net().eval(), section, IMAGES), [IMAGES])
    export_onnx(integer, IMAGES[:2], path)
    return Good(onnx.load(str(path)), integer)


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    path = tmp_path_factory.mktemp("encodings") / "good.onnx"
    return exported(4, {"bits": 4, "place": "every_value"}, path)


class Edit:
    """A copy of a file that is changed in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.graph = self.model.graph
        del self.graph.value_info[:]

    def constant(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(next(i for i in self.graph.initializer if i.name == name))

    def put(self, name: str, array: ArrayLike) -> str:
        """Set a constant, or add one."""
        made = numpy_helper.from_array(np.asarray(array), name)
        there = [item for item in self.graph.initializer if item.name == name]
        (there[0] if there else self.graph.initializer.add()).CopyFrom(made)
        return name

    def maker(self, tensor: str) -> onnx.NodeProto:
        return next(node for node in self.graph.node if tensor in node.output)

    def reader(self, tensor: str, kind: str = "DequantizeLinear") -> onnx.NodeProto:
        return next(n for n in self.graph.node if tensor in n.input and n.op_type == kind)

    def insert(self, before: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
        place = list(self.graph.node).index(before)
        for offset, node in enumerate(nodes):
            self.graph.node.insert(place + offset, node)

    def opset(self, version: int, ir_version: int) -> None:
        del self.model.opset_import[:]
        self.model.opset_import.append(helper.make_opsetid("", version))
        self.model.ir_version = ir_version

    def plain(self, layer: str, codes: np.ndarray | None = None, kind: int = 0) -> str:
        """Store a layer's codes unpacked, under their name, perhaps of another type."""
        name = f"{layer}.codes"
        found = integer_layers(GOODS[0].integer)[layer].codes.numpy() if codes is None else codes
        maker = self.maker(name)
        self.graph.node.remove(maker)
        if kind:
            raw = numpy_helper.from_array(found.astype(np.int8), name)
            made = helper.make_tensor(name, kind, found.shape, found.reshape(-1).tolist())
            assert list(made.dims) == list(raw.dims)
            self.graph.initializer.append(made)
        else:
            self.put(name, found)
        return name

    def codes(self, layer: str) -> np.ndarray:
        return integer_layers(GOODS[0].integer)[layer].codes.numpy().copy()

    def scale_of(self, layer: str) -> str:
        return self.reader(f"{layer}.codes").input[1]

    def quantizer(self, tensor: str) -> onnx.NodeProto:
        """Return the QuantizeLinear that a tensor of codes comes from."""
        node = self.maker(tensor)
        return node if node.op_type == "QuantizeLinear" else self.quantizer(node.input[0])


GOODS: list[Good] = []
ZOO: dict[str, tuple[str, Callable[[Edit], object]]] = {}


def kind(caught_by: str) -> Callable[[Callable[[Edit], object]], Callable[[Edit], object]]:
    def add(edit: Callable[[Edit], object]) -> Callable[[Edit], object]:
        ZOO[edit.__name__] = (caught_by, edit)
        return edit

    return add


@kind("gate: ")
def blocked_int8(edit: Edit) -> None:
    edit.opset(21, 10)
    node, channels = edit.reader("second.codes"), 8
    scale = edit.constant(node.input[1])
    blocks = np.tile(scale.reshape(-1, 1, 1, 1), (1, channels // 4, 3, 3)).astype(np.float32)
    node.input[1] = edit.put("blocks", blocks)
    node.input[2] = edit.put("zeros", np.zeros(blocks.shape, np.int8))
    del node.attribute[:]
    node.attribute.extend(
        [helper.make_attribute("axis", 1), helper.make_attribute("block_size", 4)]
    )


@kind("strict: ")  # ONNX Runtime up to 1.31 could not load it
def uint4_activations(edit: Edit) -> None:
    edit.opset(21, 10)
    conv = edit.reader(edit.reader("second.codes").output[0], "Conv")
    real = edit.maker(conv.input[0])
    edit.graph.initializer.append(helper.make_tensor("zero4", TensorProto.UINT4, [], [0]))
    step = edit.put("step4", edit.constant(real.input[1]))
    edit.insert(
        conv,
        helper.make_node("QuantizeLinear", [real.output[0], step, "zero4"], ["q4"]),
        helper.make_node("DequantizeLinear", ["q4", step, "zero4"], ["x4"]),
    )
    conv.input[0] = "x4"


@kind("gate: ")
def plain_int2(edit: Edit) -> None:
    edit.opset(25, 13)
    codes = np.clip(edit.codes("second"), -2, 1)
    edit.plain("second", codes, TensorProto.INT2)
    zeros = helper.make_tensor("zero2", TensorProto.INT2, [8], [0] * 8)
    edit.graph.initializer.append(zeros)
    edit.reader("second.codes").input[2] = "zero2"


@kind("gate: ")
def plain_int4(edit: Edit) -> None:
    edit.opset(21, 10)
    edit.plain("second", None, TensorProto.INT4)
    zeros = helper.make_tensor("zero4", TensorProto.INT4, [8], [0] * 8)
    edit.graph.initializer.append(zeros)
    edit.reader("second.codes").input[2] = "zero4"


@kind("gate: ")
def an_opset_too_new(edit: Edit) -> None:
    edit.opset(99, 99)


@kind("strict: ")
def float_clip_before_quantize(edit: Edit) -> None:
    clip = next(n for n in edit.graph.node if n.op_type == "Clip")
    quantize = edit.maker(clip.input[0])
    scale, zero = (float(edit.constant(name)) for name in quantize.input[1:])
    ends = [(float(edit.constant(name)) - zero) * scale for name in clip.input[1:]]
    names = [edit.put(f"end{i}", np.float32(end)) for i, end in enumerate(ends)]
    cut = helper.make_node("Clip", [quantize.input[0], *names], ["cut"])
    edit.insert(quantize, cut)
    quantize.input[0], quantize.output[0] = "cut", clip.output[0]
    edit.graph.node.remove(clip)


@kind("strict: ")
def rank_one_scales_at_an_addition(edit: Edit) -> None:
    add = next(n for n in edit.graph.node if n.op_type == "Add" and n.name.startswith(":add0"))
    for index, name in enumerate(list(add.input)):
        real = edit.maker(name)
        parts = [
            edit.put(f"{part}{index}", edit.constant(tensor).reshape(1))
            for part, tensor in zip(("scale", "zero"), real.input[1:], strict=True)
        ]
        copy = helper.make_node("DequantizeLinear", [real.input[0], *parts], [f"rank1.{index}"])
        copy.attribute.append(helper.make_attribute("axis", 0))
        edit.insert(add, copy)
        add.input[index] = f"rank1.{index}"


@kind("gate: ")
def a_gather_that_does_not_fold(edit: Edit) -> None:
    gather = edit.maker("second.codes")
    while gather.op_type != "Gather":
        gather = edit.maker(gather.input[0])
    none = edit.put("none", np.array(0, np.int32))
    edit.insert(
        gather,
        helper.make_node("Shape", ["images"], ["sizes"]),
        helper.make_node("ReduceMax", ["sizes"], ["size"], keepdims=0),
        helper.make_node("Cast", ["size"], ["size32"], to=TensorProto.INT32),
        helper.make_node("Mul", ["size32", none], ["nothing"]),
        helper.make_node("Add", [gather.input[1], "nothing"], ["index"]),
    )
    gather.input[1] = "index"


@kind("strict: ")
def reduce_mean_in_the_chain(edit: Edit) -> None:
    pool = next(n for n in edit.graph.node if n.op_type == "GlobalAveragePool")
    axes = edit.put("axes", np.array([2, 3], np.int64))
    mean = helper.make_node("ReduceMean", [pool.input[0], axes], list(pool.output), name=pool.name)
    edit.insert(pool, mean)
    edit.graph.node.remove(pool)


@kind("lint: annotation of :relu0.codes: int8 values")
def int8_activations(edit: Edit) -> None:
    zero = edit.put("zero8", np.int8(-128))
    for node in edit.graph.node:
        quantizes = ":relu0.codes" in (*node.input, *node.output)
        if quantizes and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.input[2] = zero
    for entry in edit.graph.quantization_annotation:
        if entry.tensor_name == ":relu0.codes":
            entry.quant_parameter_tensor_names[1].value = zero


@kind("health: ")
def a_wrong_zero_point(edit: Edit) -> None:
    node = edit.reader("second.input_codes")
    zero = edit.constant(node.input[2])
    node.input[2] = edit.put("wrong", np.asarray(zero - 2 if zero > 1 else zero + 2, zero.dtype))


@kind("health: ")
def the_scale_of_another_layer(edit: Edit) -> None:
    edit.reader("second.codes").input[1] = edit.scale_of("first")


@kind("lint: head.bias: its scale")
def a_bias_of_twice_the_scale(edit: Edit) -> None:
    name = edit.reader("head.bias").input[1]
    edit.reader("head.bias").input[1] = edit.put("twice", 16 * edit.constant(name))


@kind("gate: ")
def a_weight_that_is_transposed(edit: Edit) -> None:
    edit.plain("second", np.ascontiguousarray(edit.codes("second").swapaxes(0, 1)))


@kind("gate: ")
def one_code_that_is_one_off(edit: Edit) -> None:
    codes = edit.codes("second")
    codes[3, 2, 1, 0] += -1 if codes[3, 2, 1, 0] > 0 else 1
    edit.plain("second", codes)


@kind("lint: second.input_codes")
def a_clip_that_ends_one_code_early(edit: Edit) -> None:
    low, high = limits_of(edit, "second.input_codes")
    clip_at(edit, "second.input_codes", low, high - 1)


@kind("lint: ")
def a_clip_that_ends_one_code_late(edit: Edit) -> None:
    low, high = limits_of(edit, "second.input_codes")
    clip_at(edit, "second.input_codes", low, high + 1)


def limits_of(edit: Edit, tensor: str) -> tuple[int, int]:
    """Return the ends of 4 unsigned bits, wherever the file puts its zero point."""
    zero = int(edit.constant(edit.reader(tensor).input[2]))
    return zero, zero + 15


def clip_at(edit: Edit, tensor: str, low: int, high: int) -> None:
    """Cut codes off behind what quantizes them, at the layer that reads them."""
    quantize = edit.quantizer(tensor)
    if edit.maker(tensor).op_type == "Clip":
        edit.graph.node.remove(edit.maker(tensor))
    quantize.output[0] = f"{tensor}.whole"
    ends = [edit.put(f"end.{i}", np.uint8(end)) for i, end in enumerate((low, min(high, 255)))]
    after = helper.make_node("Clip", [quantize.output[0], *ends], [tensor])
    edit.graph.node.insert(list(edit.graph.node).index(quantize) + 1, after)


@kind("lint: second: no int32 tensor is the bias")
def a_float_bias_that_the_runtime_rounds(edit: Edit) -> None:
    bias = edit.reader("second.bias")
    codes, scale = (edit.constant(name) for name in bias.input)
    conv = edit.reader(bias.output[0], "Conv")
    conv.input[2] = edit.put("real_bias", (codes * scale).astype(np.float32))
    edit.graph.node.remove(bias)


@kind("gate: ")
def a_scale_that_is_no_number(edit: Edit) -> None:
    scale = edit.constant(edit.scale_of("head")).copy()
    scale[0] = np.nan
    edit.reader("head.codes").input[1] = edit.put("nan", scale)


@kind("lint: annotation of head.codes: there is no such tensor")
def dangling_annotations(edit: Edit) -> None:
    for node in edit.graph.node:
        for names in (node.input, node.output):
            names[:] = [f"p/{name}" if name == "head.codes" else name for name in names]
    for item in edit.graph.initializer:
        item.name = "p/head.codes" if item.name == "head.codes" else item.name
    for node in edit.graph.node:
        node.output[:] = ["p/head.codes" if n == "head.codes" else n for n in node.output]


@kind("lint: second.codes holds quantized weights, but is not annotated")
def no_annotations(edit: Edit) -> None:
    del edit.graph.quantization_annotation[:]


@kind("lint: annotation of second.codes: INT3, and metadata say 4 bits")
def an_annotation_of_fewer_bits(edit: Edit) -> None:
    for entry in edit.graph.quantization_annotation:
        if entry.tensor_name == "second.codes":
            entry.quant_parameter_tensor_names[2].value = "INT3"


@kind("lint: annotation of :relu0.codes: UINT2, and its codes go from 0 to")
def an_annotation_that_codes_do_not_fit(edit: Edit) -> None:
    for entry in edit.graph.quantization_annotation:
        if entry.tensor_name == ":relu0.codes":
            entry.quant_parameter_tensor_names[2].value = "UINT2"


@kind("lint: annotation of second.codes: ")
def an_annotation_with_the_scale_of_another_layer(edit: Edit) -> None:
    other = edit.scale_of("first")
    for entry in edit.graph.quantization_annotation:
        if entry.tensor_name == "second.codes":
            entry.quant_parameter_tensor_names[0].value = other


@kind("lint: second.codes: the packing of second is undone")
def packing_that_a_tool_folded(edit: Edit) -> None:
    edit.plain("second")


@pytest.mark.parametrize("name", ZOO)
def test_a_bad_encoding_is_caught(name: str, good: Good, tmp_path: Path) -> None:
    caught_by, change = ZOO[name]
    GOODS[:] = [good]
    edit = Edit(good.model)
    change(edit)
    found = good.caught_by(edit.model, tmp_path)

    assert any(one.startswith(caught_by) for one in found), "\n".join(found)


def test_a_good_file_is_not(good: Good, tmp_path: Path) -> None:
    assert good.caught_by(good.model, tmp_path) == []
    assert good.caught_by(Edit(good.model).model, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize(
    "activations",
    [
        {"bits": 4, "place": "every_value"},
        {"bits": 8, "place": "every_value"},
        {"bits": 4, "place": "layer_inputs"},
        {"bits": 5, "place": "layer_inputs", "grid": "asymmetric", "range": "ema_min_max"},
        {"bits": 1, "place": "layer_inputs", "grid": "mid_rise"},
        {"bits": 4, "place": "layer_inputs", "rounding": "ceil"},
    ],
    ids=str,
)
def test_good_files_of_every_width_and_grid_are_not(
    bits: int, activations: dict[str, object], tmp_path: Path
) -> None:
    made = exported(bits, activations, tmp_path / "good.onnx")
    found = made.caught_by(made.model, tmp_path)
    whole = activations["place"] == "every_value"

    assert [one for one in found if whole or not one.startswith("strict: ")] == []
