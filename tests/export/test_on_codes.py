"""Bytes from one integer operator to the next: what is written, what the runtime makes of it."""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing.on_codes import keep_codes
from qtool.export.writing.weights import to_proto

Array = NDArray[np.generic]
Nodes = list[onnx.NodeProto]
node = helper.make_node
IMAGES = np.random.default_rng(0).standard_normal((2, 8, 6, 6)).astype(np.float32)
CONSTANTS: dict[str, Array] = {
    "s": np.array(0.03, np.float32),
    "z": np.array(128, np.uint8),
    "t": np.array(0.17, np.float32),
    "none": np.array(0, np.uint8),
    "top": np.array(15, np.uint8),
    "codes": np.random.default_rng(1).integers(-7, 8, (8, 8, 1, 1)).astype(np.int8),
    "scales": np.linspace(0.0213, 0.0371, 8).astype(np.float32),
    "zeros": np.zeros(8, np.int8),
}


def pair(given: str, made: str, scale: str = "s", zero: str = "z", clip: str = "") -> Nodes:
    """Return Q, Clip, DQ."""
    between = [node("Clip", [f"{made}.q", "none", clip], [f"{made}.c"])] if clip else []
    return [
        node("QuantizeLinear", [given, scale, zero], [f"{made}.q"]),
        *between,
        node("DequantizeLinear", [f"{made}.{'c' if clip else 'q'}", scale, zero], [made]),
    ]


def convolution(given: str, made: str) -> Nodes:
    weight = f"{made}.weight"
    return [
        node("DequantizeLinear", ["codes", "scales", "zeros"], [weight], axis=0),
        node("Conv", [given, weight], [f"{made}.float"]),
        *pair(f"{made}.float", made),
    ]


def model(nodes: Nodes, output: str, more: Mapping[str, Array] | None = None) -> onnx.ModelProto:
    values = CONSTANTS | dict(more or {})
    used = {name for one in nodes for name in one.input}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8, 6, 6])],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in values.items() if name in used],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(proto)


def rewritten(proto: onnx.ModelProto) -> onnx.ModelProto:
    taken = ir.from_proto(proto)
    keep_codes(taken.graph)
    RemoveUnusedNodesPass()(taken)
    made = to_proto(taken)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(proto: onnx.ModelProto, *, optimized: bool = True) -> Array:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options)
    return np.asarray(session.run(None, {"x": IMAGES})[0])


def operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(one.op_type for one in OnnxRuntime().optimized(proto).node)


def shuffled(groups: int) -> tuple[Nodes, Mapping[str, Array]]:
    shapes = {
        "apart": np.array([0, groups, 8 // groups, 6, 6], np.int64),
        "together": np.array([-1, 8, 6, 6], np.int64),
    }
    nodes = [
        node("Reshape", ["a", "apart"], ["b"]),
        node("Transpose", ["b"], ["c"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["c", "together"], ["d"]),
    ]
    return nodes, shapes


@pytest.mark.parametrize("groups", [2, 4])
def test_channels_are_shuffled_innermost_on_bytes(groups: int) -> None:
    shuffle, shapes = shuffled(groups)
    nodes = [*pair("x", "i"), *convolution("i", "a"), *shuffle, *convolution("d", "y")]
    given = model(nodes, "y", shapes)
    made = rewritten(given)
    orders = [list(n.attribute[0].ints) for n in made.graph.node if n.op_type == "Transpose"]
    assert orders == [[0, 2, 3, 1], [0, 1, 2, 4, 3], [0, 3, 1, 2]]
    np.testing.assert_array_equal(run(made), run(given, optimized=False))
    counted = operators(made)
    assert (counted["QuantizeLinear"], counted["DequantizeLinear"]) == (1, 1)
    assert counted["QLinearConv"] == 2


PASSING: dict[str, Callable[[], tuple[Nodes, str, Mapping[str, Array]]]] = {
    "pooling": lambda: (
        [node("MaxPool", ["a"], ["b"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
        "b",
        {},
    ),
    "halves": lambda: (
        [
            node("Split", ["a"], ["h", "g"], axis=1, num_outputs=2),
            node("Concat", ["g", "h"], ["b"], axis=1),
            *pair("b", "d"),
        ],
        "d",
        {},
    ),
    "zeros around": lambda: (
        [node("Pad", ["a", "pads"], ["b"])],
        "b",
        {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)},
    ),
    "zeros around every other pixel": lambda: (
        [
            node("Slice", ["a", "from", "to", "axes", "every"], ["h"]),
            node("Pad", ["h", "pads"], ["p"]),
            node("MaxPool", ["p"], ["b"], kernel_shape=[2, 2]),
        ],
        "b",
        {
            "from": np.array([0, 0]),
            "to": np.array([99, 99]),
            "axes": np.array([2, 3]),
            "every": np.array([2, 2]),
            "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        },
    ),
    "upsampling": lambda: (
        [node("Resize", ["a", "", "twice"], ["b"], mode="nearest")],
        "b",
        {"twice": np.array([1, 1, 2, 2], np.float32)},
    ),
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_values_on_moves_bytes(name: str) -> None:
    between, end, more = PASSING[name]()
    nodes = [*pair("x", "i"), *convolution("i", "a"), *between, *convolution(end, "y")]
    given = model(nodes, "y", more)
    made = rewritten(given)
    np.testing.assert_array_equal(run(made), run(given, optimized=False))
    counted = operators(made)
    assert counted["QLinearConv"] == 2
    assert (counted["QuantizeLinear"], counted["DequantizeLinear"]) == (1, 1)


def test_a_scale_changes_on_bytes() -> None:
    nodes = [
        *pair("x", "i"),
        *convolution("i", "a"),
        *pair("a", "b", "t", "none", clip="top"),
        *convolution("b", "y"),
    ]
    given = model(nodes, "y")
    made = rewritten(given)
    assert operators(made)["QLinearAdd"] == 1
    assert operators(made)["QuantizeLinear"] == 1
    np.testing.assert_array_equal(run(made), run(given, optimized=False))


ONE_END: dict[str, tuple[str, list[str], int | None]] = {
    # what is quantized first, Clip's limits of the new grid -> the zero point, None: needs a Clip
    "from 0": ("none", ["none", "top"], 240),
    "up to 0": ("full", ["under", "full"], 15),
    "at both ends": ("z", ["under", "over"], None),
}


@pytest.mark.parametrize("name", ONE_END)
def test_bytes_saturate_at_the_one_end_that_values_leave_their_grid_at(name: str) -> None:
    zero, limits, expected = ONE_END[name]
    new_zero = {"from 0": "none", "up to 0": "full", "at both ends": "z"}[name]
    more = {"full": 255, "under": 240 if name == "up to 0" else 121, "over": 135}
    nodes = [
        *pair("x", "i", "s", zero),
        node("QuantizeLinear", ["i", "t", new_zero], ["b.q"]),
        node("Clip", ["b.q", *limits], ["b.c"]),
        node("DequantizeLinear", ["b.c", "t", new_zero], ["b"]),
        *convolution("b", "y"),
    ]
    given = model(nodes, "y", {key: np.array(code, np.uint8) for key, code in more.items()})
    made = rewritten(given)
    assert any(n.op_type == "Clip" for n in made.graph.node) == (expected is None)
    if expected is not None:
        quantize = [n for n in made.graph.node if n.op_type == "QuantizeLinear"][1]
        constants = {c.name: numpy_helper.to_array(c) for c in made.graph.initializer}
        assert int(constants[quantize.input[2]]) == expected
    np.testing.assert_array_equal(run(made), run(given, optimized=False))
    assert operators(made)["QLinearConv"] == 1


def test_bytes_that_pairs_of_weights_could_not_take_without_vnni_keep_their_clip() -> None:
    """255 (64 + 65) is no int16, while 15 (127 + 127) is."""
    large = np.full((8, 8, 1, 1), 64, np.int8)
    large[3, 1] = 65
    nodes = [
        *pair("x", "i", "s", "none"),
        *pair("i", "b", "t", "none", clip="top"),
        *convolution("b", "y"),
    ]
    for codes, clips in ((large, 1), (np.minimum(large, 64), 0)):
        made = rewritten(model(nodes, "y", {"codes": codes}))
        assert sum(n.op_type == "Clip" for n in made.graph.node) == clips


@pytest.mark.parametrize("also", [False, True], ids=["pooled alone", "read elsewhere"])
def test_what_is_only_pooled_is_clipped_behind_that(*, also: bool) -> None:
    end = [node("Add", ["p", "m"], ["y"])] if also else [*convolution("p", "y")]
    nodes = [
        *pair("x", "i"),
        *convolution("i", "a")[:2],
        *pair("a.float", "b", "s", "none", clip="top"),
        node("MaxPool", ["b"], ["p"], kernel_shape=[3, 3], strides=[2, 2]),
        *([node("ReduceMax", ["b"], ["m"])] if also else []),
        *end,
    ]
    given = model(nodes, "y")
    made = rewritten(given)
    order = [n.op_type for n in made.graph.node if n.op_type in ("Clip", "MaxPool")]
    assert order == (["Clip", "MaxPool"] if also else ["MaxPool", "Clip"])
    np.testing.assert_array_equal(run(made), run(given, optimized=False))
    if not also:
        counted = operators(made)
        assert counted["QLinearConv"] == 2
        assert counted["QuantizeLinear"] == 1


def test_a_scale_that_leads_to_ties_changes_by_a_table() -> None:
    """Half of a step: every second code lies between two new ones, which are rounded to even."""
    double = {"t": np.array(0.06, np.float32)}
    nodes = [*pair("x", "i"), *pair("i", "b", "t", "none", clip="top"), *convolution("b", "y")]
    given = model(nodes, "y", double)
    made = rewritten(given)
    assert operators(made)["QLinearConcat"] == 1
    assert operators(made)["QuantizeLinear"] == 1
    np.testing.assert_array_equal(run(made), run(given, optimized=False))


def test_what_is_quantized_as_it_was_is_left_as_it_was() -> None:
    nodes = [*pair("x", "i"), *pair("i", "b"), node("Add", ["i", "b"], ["c"]), *pair("c", "y")]
    given = model(nodes, "y")
    made = rewritten(given)
    counted = Counter(one.op_type for one in made.graph.node)
    assert (counted["QuantizeLinear"], counted["DequantizeLinear"]) == (2, 2)
    np.testing.assert_array_equal(run(made), run(given, optimized=False))
    assert made.graph.output[0].name == "y"


def test_what_is_passed_out_of_the_model_keeps_its_name() -> None:
    nodes = [*pair("x", "i"), node("Pad", ["i", "pads"], ["y"])]
    given = model(nodes, "y", {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)})
    made = rewritten(given)
    assert [value.name for value in made.graph.output] == ["y"]
    np.testing.assert_array_equal(run(made), run(given, optimized=False))


def test_values_with_a_scale_for_each_channel_stay_as_they_are() -> None:
    nodes = [
        node("QuantizeLinear", ["x", "scales", "bytes"], ["q"], axis=1),
        node("DequantizeLinear", ["q", "scales", "bytes"], ["a"], axis=1),
        node("MaxPool", ["a"], ["y"], kernel_shape=[2, 2]),
    ]
    given = model(nodes, "y", {"bytes": np.full(8, 128, np.uint8)})
    assert [n.op_type for n in rewritten(given).graph.node] == [n.op_type for n in nodes]
