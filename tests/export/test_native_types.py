"""Files with plain int8 weights, and with ONNX's own integers of 4 and 2 bits."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import qtool
from qtool.errors import MissingRuntimeError, ModelError
from qtool.export.proof import gate
from qtool.export.proof.lint import lint
from qtool.export.targets.target import TARGETS
from qtool.export.writing.native import narrowest_type
from qtool.integer.layers import integer_layers

IMAGES = torch.randn(8, 2, 8, 8, generator=torch.Generator().manual_seed(1))
TYPE = onnx.TensorProto


def integer_net(
    bits: int, grid: str = "narrow", override: dict[str, object] | None = None
) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 7, 3, bias=False),
        nn.Flatten(),
        nn.Linear(112, 3),
    )
    section = {
        "weights": {"bits": bits, "grid": grid, "range": "absmax"},
        "activations": {"bits": 8},
        "overrides": [{"match": "4", "weights": override}] if override else [],
    }
    return qtool.convert(qtool.prepare(net.eval(), section, IMAGES).eval(), [IMAGES])


CASES = [
    ("int8", 3, "narrow", {}, TYPE.INT8, 21, 10),
    ("int4", 3, "mid_rise", {}, TYPE.INT4, 21, 10),
    ("int4", 4, "full", {}, TYPE.INT4, 21, 10),
    ("int2", 2, "full", {}, TYPE.INT2, 25, 13),
    ("int2", 1, "narrow", {"bits": 4}, TYPE.INT2, 25, 13),
]


@pytest.mark.parametrize(("target", "bits", "grid", "override", "kind", "opset", "ir"), CASES)
def test_a_file_holds_the_type_and_gives_what_the_integer_model_gives(
    target: str, bits: int, grid: str, override: Any, kind: int, opset: int, ir: int, tmp_path: Path
) -> None:
    integer, path = integer_net(bits, grid, override), tmp_path / "m.onnx"
    described = qtool.export_onnx(integer, IMAGES, path, target=target)
    model = onnx.load(str(path))
    runtime = TARGETS[target]().runtime
    made = gate.run(runtime.open(path), IMAGES)

    torch.testing.assert_close(made, integer(IMAGES), rtol=1e-4, atol=1e-5)
    layers = integer_layers(integer)
    tensors = {layer["name"]: layer["codes"] for layer in described["layers"]}
    codes = sum(layer.codes.numel() for layer in layers.values())
    assert gate.check_codes(path, integer, tensors, runtime) == codes
    assert lint(model) == []
    assert (model.opset_import[0].version, model.ir_version) == (opset, ir)
    stored = {
        item.name.split(".")[0]: item for item in model.graph.initializer if "codes" in item.name
    }
    kinds = {"0": kind, "2": kind, "4": TYPE.INT4 if override else kind}
    assert {name: item.data_type for name, item in stored.items()} == kinds
    width = {TYPE.INT8: 1, TYPE.INT4: 2, TYPE.INT2: 4}  # codes in a byte
    for name, item in stored.items():
        count = layers[name].codes.numel()
        assert len(item.raw_data) == -(-count // width[item.data_type])
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(item).astype(np.int8), layers[name].codes.numpy()
        )
    integers = [n for n in runtime.optimized(path).node if n.op_type in runtime.integer_kernels]
    assert len(integers) == 3


@pytest.mark.parametrize(
    ("codes", "form", "expected"),
    [
        ([-2, 1], "int2", "INT2"),
        ([-2, 2], "int2", "INT4"),
        ([-2, 1], "int4", "INT4"),
        ([-8, 7], "int2", "INT4"),
        ([8], "int4", None),
        ([1], "int8", None),
        ([1], "packed", None),
    ],
)
def test_a_layer_takes_the_narrowest_type_that_holds_its_codes(
    codes: list[int], form: Any, expected: str | None
) -> None:
    found = narrowest_type(np.array(codes, np.int8), form)
    assert (found and found.name) == expected


@pytest.mark.parametrize(
    ("target", "bits", "said"),
    [("int2", 2, "INT2 .* 0, 2, 4; .* int4"), ("int4", 4, "INT4 .* 0, 2, 4; .* onnxruntime")],
)
def test_odd_codes_beyond_the_type_are_refused_by_layer(
    target: str, bits: int, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        qtool.export_onnx(integer_net(bits, "mid_rise"), IMAGES, tmp_path / "m.onnx", target=target)
    assert not (tmp_path / "m.onnx").exists()


def test_an_onnx_without_the_type_is_said_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("qtool.export.writing.native.onnx.TensorProto", object)
    with pytest.raises(MissingRuntimeError, match=r"no integers of 2 bits; .*onnx>=1.20"):
        qtool.export_onnx(integer_net(2), IMAGES, tmp_path / "m.onnx", target="int2")
