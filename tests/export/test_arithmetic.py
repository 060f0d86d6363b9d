"""QuantizeLinear and DequantizeLinear as arithmetic, and roundings that stand before additions."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing.added import round_before_adding
from qtool.export.writing.annotation import Annotation
from qtool.export.writing.arithmetic import to_arithmetic, with_zero_points
from qtool.export.writing.weights import to_proto

Array = NDArray[np.generic]
F = np.float32


def model(
    nodes: Sequence[onnx.NodeProto], constants: dict[str, Array], shape: Sequence[int]
) -> ir.Model:
    """Return a graph from x to y."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    kept = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [given], [made], kept)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def arithmetic(given: ir.Model) -> onnx.ModelProto:
    to_arithmetic(given.graph)
    RemoveUnusedNodesPass()(given)
    proto = to_proto(given)
    onnx.checker.check_model(proto, full_check=True)
    assert {n.op_type for n in proto.graph.node}.isdisjoint({"QuantizeLinear", "DequantizeLinear"})
    return proto


def run(proto: onnx.ModelProto, x: Array) -> Array:
    """Return what ONNX Runtime makes of x, which the reference evaluator must make, too."""
    found = OnnxRuntime().open(proto.SerializeToString()).run({"x": x})["y"]
    np.testing.assert_allclose(
        ReferenceEvaluator(proto).run(None, {"x": x})[0], found, rtol=1e-5, atol=1e-5
    )
    return found


@pytest.mark.parametrize(
    ("zero", "low", "high", "steps"),
    [
        (0, None, None, ["Div", "Round", "Clip", "Mul"]),
        (0, 0, 15, ["Div", "Round", "Clip", "Mul"]),
        (0, 3, 15, ["Div", "Round", "Clip", "Mul"]),
        (5, 0, 15, ["Div", "Round", "Add", "Clip", "Sub", "Mul"]),
        (128, 120, 135, ["Div", "Round", "Add", "Clip", "Sub", "Mul"]),
        (128, None, None, ["Div", "Round", "Add", "Clip", "Sub", "Mul"]),
    ],
)
def test_a_value_is_rounded_as_quantize_linear_does(
    zero: int, low: int | None, high: int | None, steps: list[str]
) -> None:
    scale = F(0.25)
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])]
    constants: dict[str, Array] = {"s": np.array(scale), "z": np.array(zero, np.uint8)}
    if low is not None:
        nodes.append(helper.make_node("Clip", ["q", "low", "high"], ["c"]))
        constants |= {"low": np.array(low, np.uint8), "high": np.array(high, np.uint8)}
    codes = "q" if low is None else "c"
    nodes.append(helper.make_node("DequantizeLinear", [codes, "s", "z"], ["y"]))
    x = np.concatenate([np.arange(-600, 600) * 0.0625, [-1e6, 1e6]]).astype(F)  # ties, too
    made = arithmetic(model(nodes, constants, [len(x)]))

    ends = (0, 255) if low is None or high is None else (low, high)
    expected = (np.clip(np.rint(x / scale) + zero, *ends) - zero) * scale
    assert np.array_equal(run(made, x), expected.astype(F))
    assert [node.op_type for node in made.graph.node] == steps
    assert {item.data_type for item in made.graph.initializer} == {TensorProto.FLOAT}


@pytest.mark.parametrize("eight", [False, True])
def test_a_weight_is_looked_up_and_multiplied_and_a_bias_is_float(eight: bool) -> None:
    random = np.random.default_rng(0)
    codes = random.integers(-8, 8, (4, 3, 1, 1)).astype(np.int8)
    scales, steps = random.random(4).astype(F), random.integers(-99, 99, 4).astype(np.int32)
    table = np.array([[b % 16 - 8, b // 16 - 8] for b in range(256)], np.int8)
    flat = (codes.astype(int) + 8).reshape(-1, 2)
    packed = (flat[:, 0] + 16 * flat[:, 1]).astype(np.uint8)
    constants: dict[str, Array] = {
        "packed": packed,
        "table": table,
        "shape": np.array(codes.shape, np.int64),
        "s": scales,
        "z": np.zeros(4, np.int8),
        "b": steps,
        "bs": scales / 4,
    }
    look_up = [
        helper.make_node("Cast", ["packed"], ["index"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "index"], ["rows"], axis=0),
        helper.make_node("Reshape", ["rows", "shape"], ["codes"]),
    ]
    if eight:
        look_up, constants = [], {**constants, "codes": codes}
    nodes = [
        *look_up,
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bias"], axis=0),
        helper.make_node("Conv", ["x", "w", "bias"], ["y"]),
    ]
    made = arithmetic(model(nodes, constants, [2, 3, 5, 5]))

    x = random.standard_normal((2, 3, 5, 5)).astype(F)
    weight, bias = codes[..., 0, 0] * scales[:, None], steps * scales / 4
    expected = np.einsum("oc,bchw->bohw", weight, x) + bias[:, None, None]
    np.testing.assert_allclose(run(made, x), expected, rtol=1e-5, atol=1e-5)
    bytes_ = sum(len(numpy_helper.to_array(item).tobytes()) for item in made.graph.initializer
                 if item.data_type in (TensorProto.UINT8, TensorProto.INT8))  # fmt: skip
    assert bytes_ == (12 if eight else 6)


def test_annotations_of_zero_points_that_are_gone_name_the_number_0() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["w"]),
        helper.make_node("Add", ["w", "s"], ["y"]),
    ]
    given = model(nodes, {"s": np.array(2, F), "left": np.array(3, F)}, [4])
    notes = [Annotation("a", "s", "gone", "INT4"), Annotation("b", "s", "left", "INT4")]
    found = with_zero_points(notes, given.graph)

    assert found[1] == notes[1]
    zero = {item.name: item for item in to_proto(given).graph.initializer}[found[0].zero_point]
    assert numpy_helper.to_array(zero) == 0
    x = np.array([1, 2, 3, 4], F)
    assert np.array_equal(run(to_proto(given), x), 2 * x + 2)
    again = with_zero_points(notes, given.graph)
    assert again == found  # the same number, which is read
    assert Counter(node.op_type for node in given.graph)["Sub"] == 1


@pytest.mark.parametrize("clips", [False, True])
def test_a_rounding_behind_a_convolution_stands_apart_where_its_result_is_added(
    clips: bool,
) -> None:
    pair = ["s", "z"]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="block.conv/Conv")]
    nodes.append(helper.make_node("QuantizeLinear", ["c", *pair], ["q"]))
    codes = "q"
    if clips:
        nodes.append(helper.make_node("Clip", ["q", "low", "high"], ["k"]))
        codes = "k"
    nodes += [
        helper.make_node("DequantizeLinear", [codes, *pair], ["d"]),
        helper.make_node("Add", ["d", "x"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["c2"], name="next/Conv"),
        helper.make_node("QuantizeLinear", ["c2", *pair], ["q2"]),  # which nothing adds
        helper.make_node("DequantizeLinear", ["q2", *pair], ["y"]),
    ]
    constants: dict[str, Array] = {
        "w": np.ones((3, 3, 1, 1), F),
        "s": np.array(F(0.5)),
        "z": np.array(9, np.uint8),
        "low": np.array(1, np.uint8),
        "high": np.array(16, np.uint8),
    }
    given = model(nodes, constants, [1, 3, 4, 4])
    before = OnnxRuntime().open(to_proto(given).SerializeToString())
    round_before_adding(given.graph)
    proto = to_proto(given)

    apart = [node for node in proto.graph.node if node.op_type == "LeakyRelu"]
    assert [(node.name, list(node.input)) for node in apart] == [("block.conv/LeakyRelu", ["c"])]
    assert apart[0].attribute[0].f == 1
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4)).astype(F)
    after = OnnxRuntime().open(proto.SerializeToString())
    assert np.array_equal(before.run({"x": x})["y"], after.run({"x": x})["y"])
