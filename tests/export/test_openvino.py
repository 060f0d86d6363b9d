"""Files for OpenVINO, in OpenVINO: residual networks, what runs in integers, and refusals."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.errors import ExportError, ModelError
from qtool.export.proof import gate
from qtool.export.proof.site_codes import compare_site_codes
from qtool.export.proof.why_slow import Known, kernels_of
from qtool.export.targets.target import TARGETS
from qtool.export.writing import onnx_qdq, written_weights
from qtool.export.writing.saturation import saturating_layers
from qtool.integer.converted import converted_state

IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(4))
EVERY = {"bits": 4, "place": "every_value"}


class Residual(nn.Module):
    """A convolution, and two blocks of two with an addition behind, [B, 3, H, W] to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        for first, second in zip(self.layers[::2], self.layers[1::2], strict=True):
            x = torch.relu(x + second(torch.relu(first(x))))
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def integer() -> nn.Module:
    torch.manual_seed(0)
    model = qtool.prepare(Residual(), {"weights": {"bits": 4}, "activations": EVERY}, IMAGES)
    qtool.round_biases(model.eval())
    return qtool.convert(model)


def test_an_integer_model_that_could_saturate_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    section = {
        "weights": {"bits": 8, "range": "absmax"},
        "activations": {"bits": 8, "place": "layer_inputs"},
    }
    model = qtool.prepare(nn.Sequential(nn.Flatten(), nn.Linear(432, 5)), section, IMAGES).eval()
    integer = qtool.convert(model)
    with pytest.raises(ModelError, match=r"would saturate in 1 .*convert with --no-saturation"):
        onnx_qdq.write_onnx(
            integer, IMAGES, tmp_path / "m.onnx", onnx_qdq.Writing("openvino", unproven=True)
        )
    safe = qtool.convert(model, saturation="avoid")
    assert saturating_layers(safe) == set()


def test_a_residual_network_is_computed_code_by_code(
    integer: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    path, runtime = tmp_path / "m.onnx", TARGETS["openvino"]().runtime
    with torch.no_grad():
        expected = integer(IMAGES)

    def off() -> float:
        qtool.export_onnx(integer, IMAGES, path, "openvino")
        given = gate.run(runtime.open(path), IMAGES)
        return float((given - expected).abs().max() / expected.std())

    assert off() < 1e-5
    codes = compare_site_codes(path, integer, IMAGES, runtime)
    assert sum(found.differing for found in codes.values()) == 0
    kernels = kernels_of(path, runtime.optimized(path), runtime, Known.of(converted_state(integer)))
    assert kernels.layers == {"stem", "fc", *(f"layers.{index}" for index in range(4))}
    assert kernels.integer == kernels.quantizable
    assert kernels.why_slow == []

    monkeypatch.setattr(written_weights, "round_before_adding", lambda graph: None)
    assert off() > 0.01  # what OpenVINO makes of the file without it


def test_what_openvino_has_no_name_for_is_said(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    runtime = TARGETS["openvino"]().runtime
    with pytest.raises(ExportError, match="quantizes no file by itself"):
        runtime.quantize(tmp_path / "a.onnx", tmp_path / "b.onnx", [])


def test_plainly_means_in_float(integer: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path, runtime = tmp_path / "m.onnx", TARGETS["openvino"]().runtime
    qtool.export_onnx(integer, IMAGES, path, "openvino")
    with torch.no_grad():
        expected = integer(IMAGES)
    plain = gate.run(runtime.open(path, plainly=True), IMAGES)
    assert float((plain - expected).abs().median() / expected.std()) < 0.1
    kinds = {node.op_type for node in runtime.optimized(onnx.load(str(path))).node}
    assert "QLinearConv" in kinds
