"""What a file is timed against."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.export.proof import latency
from qtool.export.proof.float_model import dequantized
from qtool.export.proof.gate import run
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.targets.target import Runtime
from qtool.export.writing.onnx_qdq import export_onnx
from qtool.integer.layers import integer_layers
from tests.kit import float_net

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))
RUNTIME = OnnxRuntime()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    section = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}
    integer = qtool.convert(qtool.prepare(float_net(), section, IMAGES))
    path = tmp_path_factory.mktemp("latency") / "m.onnx"
    export_onnx(integer, IMAGES, path)
    return path, integer


def test_the_float_model_has_dequantized_weights_folded_norms_and_rounds_nothing(
    written: tuple[Path, nn.Module],
) -> None:
    integer = written[1]
    net = float_net()
    for name, norm in (("conv1", net.bn1), ("conv2", net.bn2), ("fc", None)):
        layer, own = integer_layers(integer)[name], net.get_submodule(name)
        assert layer.weight_scale is not None
        scale = layer.weight_scale.double()
        weight = layer.codes.double() * scale.reshape(-1, *[1] * (layer.codes.ndim - 1))
        assert layer.bias is not None
        assert layer.input_scale is not None
        bias = layer.bias.double() * scale * layer.input_scale.double()
        own.weight = nn.Parameter(weight.float())
        own.bias = nn.Parameter(bias.float())
        if norm is not None:
            setattr(net, f"bn{name[-1]}", nn.Identity())

    torch.testing.assert_close(dequantized(integer)(IMAGES), net(IMAGES), rtol=1e-5, atol=1e-5)
    assert isinstance(integer.get_submodule("bn1"), nn.Identity)


def test_the_runtimes_own_quantization_and_all_threads_are_measured_where_asked(
    written: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[str], int]] = []

    def times(
        paths: Sequence[Path], image: Tensor, runtime: Runtime, *, threads: int = 1
    ) -> list[float]:
        asked.append(([path.name for path in paths], threads))
        assert all(run(runtime.open(path), image).shape == (1, 5) for path in paths)
        return [1.0 + index + 10 * (threads != 1) for index in range(len(paths))]

    monkeypatch.setattr(latency, "latencies", times)
    path, integer = written
    plain = latency.latency_beside_float(path, integer, IMAGES, RUNTIME)
    both = latency.latency_beside_float(path, integer, IMAGES, RUNTIME, measure=True)

    assert plain.to_json() == {"float": 1.0, "exported": 2.0, "static": None, "all_threads": None}
    expected = {"float": 11.0, "exported": 12.0, "static": 13.0}
    everywhere = both.to_json().pop("all_threads")
    assert everywhere.pop("threads") >= 1
    assert everywhere == expected
    assert both.static == 3.0
    three = ["float.onnx", "m.onnx", "static.onnx"]
    assert asked == [(three[:2], 1), (three, 1), (three, 0)]


def test_the_runtimes_own_quantization_computes_in_integers(
    written: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    latency.export_float(dequantized(written[1]), IMAGES[:1], tmp_path / "float.onnx")
    latency.quantize_static(tmp_path / "float.onnx", tmp_path / "static.onnx", IMAGES, RUNTIME)
    kernels = [node.op_type for node in RUNTIME.optimized(tmp_path / "static.onnx").node]

    assert kernels.count("QLinearConv") == 2
    close = run(RUNTIME.open(tmp_path / "static.onnx"), IMAGES)
    exact = run(RUNTIME.open(tmp_path / "float.onnx"), IMAGES)
    assert float((close - exact).abs().max()) < 0.1 * float(exact.std())
