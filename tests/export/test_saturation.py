"""Layers that may saturate without VNNI: which are named, which become uint8 around 128."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

import qtool
from qtool.errors import ExportError
from qtool.export.proof import gate
from qtool.export.proof.lint import lint
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing.annotation import read_annotations
from qtool.export.writing.saturation import saturating_layers
from qtool.integer.layers import integer_layers

IMAGES = torch.rand(8, 4, 8, 8, generator=torch.Generator().manual_seed(1))


class Gated(nn.Module):
    """A convolution, a depthwise one, a gate of one pixel for each channel, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(4, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze = nn.Conv2d(8, 8, 8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.wide(x).relu()).relu()
        return self.fc(self.squeeze(x).relu().flatten(1))


class Tokens(nn.Module):
    """A linear layer on each of 16 rows, and one on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(x.reshape(len(x), -1, 8)[:, :16]).relu().mean(1))


def prepared(net: type[nn.Module] = Gated, **weights: Any) -> nn.Module:
    torch.manual_seed(0)
    section = {
        "weights": {"bits": 8, "range": "absmax", **weights},
        "activations": {"bits": 8, "place": "layer_inputs"},
    }
    return qtool.prepare(net().eval(), section, IMAGES)


def converted(net: type[nn.Module] = Gated, **weights: Any) -> nn.Module:
    return qtool.convert(prepared(net, **weights))


def codes_in(path: Path, name: str) -> NDArray[Any]:
    return gate.stored_codes(path, [name], OnnxRuntime())[name]


def dequantize_of(path: Path, codes: str) -> tuple[NDArray[Any], ...]:
    """Return what a DequantizeLinear holds beside the codes: scales and zero points."""
    graph = onnx.load(str(path)).graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    (node,) = (n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] == codes)
    return tuple(constants[name] for name in node.input[1:])


PACKED = {"bits": 7, "grid": "mid_rise"}  # codes of +-127, of which a byte holds no whole number


@pytest.mark.parametrize("weights", [{}, pytest.param(PACKED, marks=pytest.mark.slow)], ids=str)
def test_layers_of_one_row_become_uint8_and_the_others_are_named(
    tmp_path: Path, weights: dict[str, Any]
) -> None:
    integer, path = converted(**weights), tmp_path / "m.onnx"
    described = qtool.export_onnx(integer, IMAGES, path)
    assert described["may_saturate"] == ["wide"]
    given = gate.run(OnnxRuntime().open(path), IMAGES)
    torch.testing.assert_close(given, integer(IMAGES), rtol=1e-5, atol=1e-6)
    zeros = {layer["name"]: layer["zero_point"] for layer in described["layers"]}
    assert zeros == {"wide": 0, "deep": 0, "squeeze": 128, "fc": 128}
    for name, layer in integer_layers(integer).items():
        stored = codes_in(path, f"{name}.codes")
        assert stored.dtype == (np.uint8 if zeros[name] else np.int8)
        assert np.array_equal(stored.astype(int) - zeros[name], layer.codes.numpy())
        if layer.spec.weight_bits == 8 or zeros[name]:
            _, zero = dequantize_of(path, f"{name}.codes")
            assert set(zero.tolist()) == {zeros[name]}
    assert lint(onnx.load(str(path))) == []
    said = {note.tensor: note.datatype for note in read_annotations(onnx.load(str(path)).graph)}
    assert said["fc.codes"] == "UINT8"
    assert said["wide.codes"] == "INT8"
    forms = {layer["name"]: layer["integer_kernel"] for layer in described["layers"]}
    assert forms["squeeze"]  # and still integer kernels
    assert forms["fc"]
    names = {layer["name"]: layer["codes"] for layer in described["layers"]}
    count = sum(layer.codes.numel() for layer in integer_layers(integer).values())
    assert gate.check_codes(path, integer, names, OnnxRuntime()) == count
    integer_layers(integer)["fc"].codes[0, 0] += 1
    with pytest.raises(ExportError, match="the codes of fc differ"):
        gate.check_codes(path, integer, names, OnnxRuntime())


@pytest.mark.parametrize(
    "batch", [None, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))]
)
def test_rows_are_counted_for_each_image(tmp_path: Path, batch: int | None) -> None:
    described = qtool.export_onnx(converted(Tokens), IMAGES, tmp_path / "m.onnx", batch=batch)
    zeros = {layer["name"]: layer["zero_point"] for layer in described["layers"]}
    assert zeros == {"up": 0, "head": 128}
    assert (
        described.get("may_saturate", [])
        == [layer["name"] for layer in described["layers"] if layer["integer_kernel"]][:-1]
    )


def test_nothing_is_named_where_steps_are_fewer() -> None:
    assert saturating_layers(converted()) == {"wide", "squeeze", "fc"}
    assert saturating_layers(converted(bits=7)) == set()
    assert saturating_layers(converted(saturation="avoid")) == set()
    assert saturating_layers(qtool.convert(prepared(), saturation="avoid")) == set()
