"""What runs in integers, what in float between integers, why, and what a strict export refuses."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.errors import ExportError
from qtool.export.proof.islands import RuntimeGraph
from qtool.export.proof.why_slow import NOTHING, Kernels, Known, kernels_of, refuse_float_operators
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing.node_names import owner_of
from qtool.export.writing.onnx_qdq import export_onnx
from qtool.integer.converted import converted_state
from qtool.integer.layers import LayerSpec
from qtool.limits import JOIN_OF_FLOAT
from qtool.reports.exports import FloatOperator

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
INPUTS = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}


class Block(nn.Module):
    """Adds what its convolutions make to what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(self.relu(self.conv1(x))))


class Net(nn.Module):
    """A stem, two residual blocks, a gate that qtool has no integers for, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.last, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(F.softplus(self.blocks(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def kernels(path: Path, integer: nn.Module) -> Kernels:
    runtime = OnnxRuntime()
    state = converted_state(integer)
    return kernels_of(path, runtime.optimized(path), runtime, Known.of(state))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    torch.manual_seed(0)
    section = INPUTS | {"overrides": [{"match": "last", "weights": None}]}
    integer = qtool.convert(qtool.prepare(Net().eval(), section, IMAGES))
    path = tmp_path_factory.mktemp("slow") / "m.onnx"
    export_onnx(integer, IMAGES, path)
    return path, integer


def test_nodes_are_named_after_layers_and_numbered_calls(written: tuple[Path, nn.Module]) -> None:
    nodes = onnx.load(str(written[0])).graph.node
    named = {(node.op_type, owner_of(node.name)) for node in nodes if owner_of(node.name)}

    assert ("Add", "blocks.1:add0") in named
    assert {("Relu", f"blocks.0:relu{number}") for number in (0, 1)} <= named
    assert {("Conv", f"blocks.{b}.conv{c}") for b in (0, 1) for c in (1, 2)} <= named
    assert len({node.name for node in nodes}) == len(nodes)


def test_every_float_operator_between_integers_is_listed_with_its_place_and_reason(
    written: tuple[Path, nn.Module],
) -> None:
    found = kernels(*written)
    listed = {one.name: one for one in found.why_slow}

    # the stem's input is quantized by the runtime's own entry; fc ends the network in integers
    expected = {"stem", "last", *(f"blocks.{b}.conv2" for b in (0, 1))}
    assert expected | {"blocks.0:add0", "blocks.1:add0"} <= listed.keys()
    assert not {"fc", "blocks.0.conv1", "blocks.1.conv1"} & listed.keys()
    assert listed["last"].reason == "its weight is float"
    assert listed["blocks.0.conv2"].change == "place: every_value"
    assert "place: every_value" in listed["blocks.1:add0"].change
    softplus = [one for one in found.why_slow if one.operator == "Softplus"]
    assert [one.reason for one in softplus] == ["qtool has no integer form of Softplus"]


def test_the_share_counts_layers_additions_and_poolings(written: tuple[Path, nn.Module]) -> None:
    found = kernels(*written)

    # 6 convolutions, fc, 2 additions, 1 pooling; each block's first convolution and fc in integers
    assert (found.integer, found.quantizable) == (3, 10)
    assert found.layers == {"blocks.0.conv1", "blocks.1.conv1", "fc"}


def test_a_file_wholly_in_integers_is_not_slow(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3))
    integer = qtool.convert(qtool.prepare(net.eval(), INPUTS, IMAGES))
    export_onnx(integer, IMAGES, tmp_path / "m.onnx")
    found = kernels(tmp_path / "m.onnx", integer)

    assert found.why_slow == []
    assert (found.integer, found.quantizable) == (2, 3)  # the last convolution puts out float


def graph(*nodes: onnx.NodeProto, initializers: dict[str, np.ndarray]) -> RuntimeGraph:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])
    constants = [onnx.numpy_helper.from_array(v, name) for name, v in initializers.items()]
    made = helper.make_graph(list(nodes), "g", [x], [y], constants)
    return RuntimeGraph(made, OnnxRuntime())


def test_what_lies_before_the_first_and_behind_the_last_integers_is_not_between_them() -> None:
    node = helper.make_node
    found = graph(
        node("Tanh", ["x"], ["a"], name="before"),
        node("QuantizeLinear", ["a", "s", "z"], ["b"]),
        node("DequantizeLinear", ["b", "s", "z"], ["c"]),
        node("Tanh", ["c"], ["d"], name="first"),
        node("Neg", ["d"], ["e"], name="second"),
        node("Reshape", ["e", "shape"], ["f"], name="view"),
        node("QuantizeLinear", ["f", "s", "z"], ["g"]),
        node("Reshape", ["g", "shape"], ["h"], name="of codes"),
        node("DequantizeLinear", ["h", "s", "z"], ["i"]),
        node("Tanh", ["i"], ["y"], name="behind"),
        initializers={
            "s": np.array(0.1, np.float32),
            "z": np.array(3, np.uint8),
            "shape": np.array([1, 2], np.int64),
        },
    )

    assert [n.name for n in found.float_between_integers()] == ["first", "second"]
    assert found.quantizable() == []


def test_bytes_that_get_another_scale_are_no_addition_and_no_concatenation() -> None:
    node, ends = helper.make_node, ["s", "z"]
    found = graph(
        node("QuantizeLinear", ["x", *ends], ["a"]),
        node("QLinearAdd", ["a", *ends, "zero", "s", "zero", *ends], ["b"]),
        node("QLinearConcat", [*ends, "b", *ends], ["c"]),
        node("QLinearAdd", ["c", *ends, "one", "s", "zero", *ends], ["d"]),
        node("QLinearConcat", [*ends, "d", *ends, "c", *ends], ["e"]),
        node("DequantizeLinear", ["e", *ends], ["y"]),
        initializers={
            "s": np.array(0.1, np.float32),
            **{
                name: np.array(code, np.uint8) for name, code in (("z", 3), ("zero", 0), ("one", 1))
            },
        },
    )

    assert [list(n.output) for n in found.quantizable()] == [["d"], ["e"]]


def spec(**keys: object) -> LayerSpec:
    plain = {"name": "conv", "kind": "Conv2d", "shape": [1, 1, 1, 1], "bias": "none"}
    grids = {"weight_bits": 4, "weight_grid": "narrow", "input_bits": 4, "input_grid": "unsigned"}
    return LayerSpec.model_validate({**plain, **grids, **keys})


CHOSEN = "overrides.0 leaves weights and input float"
READS = JOIN_OF_FLOAT.text(operand="a:add0")
ACTIVATIONS, AROUND = "quantization.activations", "what keeps its neighbours float"


@pytest.mark.parametrize(
    ("known", "reason", "change"),
    [
        (Known(left_float={"conv": CHOSEN}), CHOSEN, "overrides.0, which"),
        (Known(layers={"conv": spec(unfused="a reason")}), "a reason", NOTHING),
        (Known(layers={"conv": spec(input_bits=None)}), "its input is float", ACTIVATIONS),
        (Known(layers={"conv": spec()}, values=True), "what it makes has no quantizer", AROUND),
        (Known(float_sites={"conv": READS}), READS, "quantize what makes a:add0"),
    ],
)
def test_what_was_decided_for_a_place_is_the_reason(
    known: Known, reason: str, change: str, tmp_path: Path
) -> None:
    node = helper.make_node
    made = graph(
        node("QuantizeLinear", ["x", "s", "z"], ["b"]),
        node("DequantizeLinear", ["b", "s", "z"], ["c"]),
        node("Conv", ["c", "w"], ["d"], name="conv/Conv"),
        node("QuantizeLinear", ["d", "s", "z"], ["e"]),
        node("DequantizeLinear", ["e", "s", "z"], ["y"]),
        initializers={
            "s": np.array(0.1, np.float32),
            "z": np.array(3, np.uint8),
            "w": np.ones((1, 1, 1, 1), np.float32),
        },
    ).graph
    onnx.save(helper.make_model(made), str(tmp_path / "m.onnx"))
    found = kernels_of(tmp_path / "m.onnx", made, OnnxRuntime(), known)

    assert [one.name for one in found.why_slow] == ["conv"]
    assert found.why_slow[0].reason.startswith(reason)
    assert found.why_slow[0].change.startswith(change)


def between(*nodes: onnx.NodeProto, known: Known, path: Path) -> dict[str, FloatOperator]:
    """Return what is found of nodes between a quantized x, "b", and a quantizer of "c"."""
    node = helper.make_node
    made = graph(
        node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        node("DequantizeLinear", ["a", "s", "z"], ["b"]),
        *nodes,
        node("QuantizeLinear", ["c", "s", "z"], ["d"]),
        node("DequantizeLinear", ["d", "s", "z"], ["y"]),
        initializers={
            "s": np.array(0.1, np.float32),
            "z": np.array(3, np.uint8),
            "w": np.ones(2, np.float32),
            "shape": np.array([1, 2], np.int64),
        },
    ).graph
    onnx.save(helper.make_model(made), str(path))
    return {one.name: one for one in kernels_of(path, made, OnnxRuntime(), known).why_slow}


@pytest.mark.parametrize("other", ["Softmax", "Softplus"])
def test_sums_and_moves_stay_float_by_design_where_all_that_lies_around_does(
    other: str, tmp_path: Path
) -> None:
    node = helper.make_node
    found = between(
        node("LayerNormalization", ["b", "w"], ["n"], name=":layer_norm0/LayerNormalization"),
        node("Transpose", ["b"], ["t"], name="block/Transpose"),
        node("Reshape", ["t", "shape"], ["r"], name="block/Reshape"),
        node("Add", ["r", "n"], ["p"], name="block:add0/Add"),
        node(other, ["b"], ["q"], name=":other/Other"),
        node("Transpose", ["q"], ["u"], name="block.moved/Transpose"),
        node("Add", ["p", "u"], ["c"], name="block:add1/Add"),
        known=Known(float_sites={"block:add0": READS, "block:add1": READS}, values=True),
        path=tmp_path / "m.onnx",
    )
    designed = {name for name, one in found.items() if one.by_design}

    around = {"block", "block.moved", "block:add0", "block:add1"}
    both = {":layer_norm0", ":other"}
    assert found.keys() == around | both
    assert designed == (around | both if other == "Softmax" else {":layer_norm0"})
    if other == "Softmax":
        refuse_float_operators("m.onnx", found.values())
    else:
        with pytest.raises(ExportError, match=r"block \(Transpose\): the value that it passes on"):
            refuse_float_operators("m.onnx", found.values())


def test_what_a_recipe_could_change_is_never_float_by_design(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = (
        node("LayerNormalization", ["b", "w"], ["n"], name=":layer_norm0/LayerNormalization"),
        node("Div", ["n", "w"], ["h"], name="block/Div"),
        node("MatMul", ["h", "m"], ["o"], name="fc/MatMul"),
        node("Constant", [], ["m"], value=helper.make_tensor("m", 1, [2, 2], [1.0] * 4)),
        node("MatMul", ["o", "h"], ["c"], name=":matmul0/MatMul"),
    )
    found = between(
        *(nodes[3], *nodes[:3], nodes[4]),
        known=Known(layers={"fc": spec(weight_bits=None)}, values=True),
        path=tmp_path / "m.onnx",
    )

    designed = {name: one.by_design for name, one in found.items()}
    assert designed == {":layer_norm0": True, "block": True, "fc": False, ":matmul0": True}
    assert found["fc"].reason == "its weight is float"


def test_what_moves_bytes_without_a_written_type_is_in_integers() -> None:
    node = helper.make_node
    found = graph(
        node("QuantizeLinear", ["x", "s", "z"], ["a"]),
        node("Pad", ["a", "pads", "z"], ["b"]),
        node("QLinearConcat", ["s", "z", "b", "s", "z", "b", "s", "z"], ["c"]),
        node("Transpose", ["c"], ["d"]),
        node("DequantizeLinear", ["d", "s", "z"], ["y"]),
        initializers={
            "s": np.array(0.1, np.float32),
            "z": np.array(3, np.uint8),
            "pads": np.zeros(4, np.int64),
        },
    )

    assert found.float_between_integers() == []


def test_a_strict_export_refuses_the_first_of_them_by_name() -> None:
    one = FloatOperator(operator="Add", name=":add0", reason="a reason", change="a change")

    refuse_float_operators("m.onnx", [])
    with pytest.raises(ExportError, match=r"m\.onnx: --strict: 1 operator would run in float"):
        refuse_float_operators("m.onnx", [one])
    with pytest.raises(ExportError, match=r":add0 \(Add\): a reason; .* and 2 more; the file was"):
        refuse_float_operators("m.onnx", [one] * 5)
