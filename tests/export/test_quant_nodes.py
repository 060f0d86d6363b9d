"""Files of Quant and BipolarQuant give what the integer model gives, by QONNX's own definition."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor, nn

import qtool
from qtool.export.proof.gate import check_codes, run
from qtool.export.proof.measure import Evidence, export_report
from qtool.export.proof.site_codes import compare_site_codes
from qtool.export.targets.target import TARGETS
from qtool.export.writing.onnx_qdq import write_onnx
from qtool.export.writing.quant_width import Width
from qtool.export.writing.request import Writing
from qtool.inspection.onnx import inspect_onnx
from qtool.integer.layers import integer_layers
from qtool.reports.results import ExportDescription

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
DOMAIN = "qonnx.custom_op.general"


class Quant(OpRun):
    """QONNX's Quant, from its specification: rounded between the ends, zero point before."""

    op_domain = DOMAIN

    def _run(
        self,
        x: Any,
        scale: Any,
        zero: Any,
        bits: Any,
        *,
        signed: int,
        narrow: int,
        rounding_mode: str,
    ) -> tuple[Any]:
        rounded = {"ROUND": np.rint, "CEIL": np.ceil}[rounding_mode]
        count = 2.0 ** float(bits)
        low, high = (-count / 2 + narrow, count / 2 - 1) if signed else (0.0, count - 1 - narrow)
        whole = rounded(np.clip(x / scale + zero, low, high))
        return (((whole - zero) * scale).astype(np.float32),)


class BipolarQuant(OpRun):
    """QONNX's BipolarQuant: zero goes to +1."""

    op_domain = DOMAIN

    def _run(self, x: Any, scale: Any) -> tuple[Any]:
        return ((np.where(x >= 0, 1, -1) * scale).astype(np.float32),)


class Small(nn.Module):
    """Three convolutions, pooled, with a residual, and a head: [B, 3, 8, 8] to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.conv3, self.fc = nn.Conv2d(8, 8, 1, bias=False), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv3(torch.nn.functional.relu6(self.conv2(x))) + x)
        return self.fc(torch.nn.functional.max_pool2d(x, 4).flatten(1))


def converted(
    weights: dict[str, Any], activations: dict[str, Any], layers: dict[str, Any] | None = None
) -> nn.Module:
    """Return an integer model; layers: name -> the section of its override."""
    torch.manual_seed(0)
    overrides = [{"match": name, **section} for name, section in (layers or {}).items()]
    section = {"weights": weights, "activations": activations, "overrides": overrides}
    model = qtool.prepare(Small(), section, IMAGES).eval()
    qtool.round_biases(model)
    return qtool.convert(model)


LAYER_INPUTS, EVERY_VALUE = {"place": "layer_inputs"}, {"place": "every_value"}
MIXED = {
    "conv1": {"weights": {"bits": 1}, "activations": {"grid": "asymmetric"}},
    "conv2": {"weights": {"bits": 3, "grid": "mid_rise"}, "activations": {"rounding": "ceil"}},
    "conv3": {"weights": {"grid": "ternary", "bits": 2}, "activations": {"bits": 1}},
}
BIPOLAR = {"conv3": {"activations": {"bits": 1, "grid": "mid_rise"}}}
FILES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "mixed": ({"bits": 4}, {"bits": 4, **LAYER_INPUTS}, MIXED),
    "bipolar": ({"bits": 8, "granularity": "per_tensor"}, {"bits": 4, **LAYER_INPUTS}, BIPOLAR),
    "values": ({"bits": 4, "grid": "full"}, {"bits": 4, **EVERY_VALUE}, {}),
}


def written(integer: nn.Module, path: Path) -> ExportDescription:
    return write_onnx(integer, IMAGES, path, Writing("qonnx", unproven=True))


def nodes(path: Path, operator: str) -> list[onnx.NodeProto]:
    return [node for node in onnx.load(str(path)).graph.node if node.op_type == operator]


Made = tuple[nn.Module, Path, ExportDescription]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    folder = tmp_path_factory.mktemp("files")

    @cache
    def made(name: str) -> Made:
        integer, path = converted(*FILES[name]), folder / f"{name}.onnx"
        return integer, path, written(integer, path)

    return made


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, files: Callable[[str], Made]) -> Made:
    return files(request.param)


@torch.no_grad()
def test_a_file_computes_what_the_integer_model_does(
    file: Made,
) -> None:
    integer, path, described = file
    evaluator = ReferenceEvaluator(str(path), new_ops=[Quant, BipolarQuant])
    given = [np.asarray(evaluator.run(["logits"], {"images": x[None].numpy()})) for x in IMAGES]
    torch.testing.assert_close(
        torch.from_numpy(np.concatenate(given, 1)[0]), integer(IMAGES), rtol=1e-4, atol=1e-5
    )
    names = {"QuantizeLinear", "DequantizeLinear", "Gemm"}
    assert not names & {node.op_type for node in onnx.load(str(path)).graph.node}
    assert inspect_onnx(path).problems == []
    for layer in described.layers:  # a weight stays float32 there
        assert layer.packed_bytes == 4 * integer_layers(integer)[layer.name].codes.numel()


def test_a_weight_has_the_width_of_its_grid_and_one_scale_where_it_has_one(
    files: Callable[[str], Made],
) -> None:
    _, path, _ = files("mixed")
    constants = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in onnx.load(str(path)).graph.initializer
    }
    bits = {
        node.output[0]: float(constants[node.input[3]])
        for node in nodes(path, "Quant")
        if node.input[0] in constants
    }
    assert bits == {"conv2.codes.values": 4, "conv3.codes.values": 2, "fc.codes.values": 4}
    assert [node.output[0] for node in nodes(path, "BipolarQuant")] == ["conv1.codes.values"]
    assert constants["conv2.codes.scale"].shape == (8, 1, 1, 1)

    _, path, _ = files("bipolar")
    constants = {
        item.name: onnx.numpy_helper.to_array(item)
        for item in onnx.load(str(path)).graph.initializer
    }
    assert constants["conv2.codes.scale"].shape == ()


def test_zero_goes_to_minus_one_before_a_bipolar_quant(files: Callable[[str], Made]) -> None:
    _, path, _ = files("bipolar")
    nothing = torch.full_like(IMAGES[:1], -100.0)  # what a ReLU makes of it is 0, now and then
    model = onnx.load(str(path))
    value = onnx.helper.make_tensor_value_info("conv3.input_codes.values", 1, None)
    model.graph.output.append(value)
    before = nodes(path, "Sub")[0].input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(before, 1, None))
    evaluator = ReferenceEvaluator(model, new_ops=[Quant, BipolarQuant])
    found = list(evaluator.run(None, {"images": nothing.numpy()}))
    signs, given = (np.asarray(value) for value in found[1:])
    assert (given == 0).any()
    assert (signs[given == 0] < 0).all()


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0, 15), Width(4, signed=False)),
        ((0, 1), Width(1, signed=False)),
        ((-8, 7), Width(4, signed=True)),
        ((-7, 7), Width(4, signed=True, narrow=True)),
        ((-128, 127), Width(8, signed=True)),
        ((-3, 12), Width(4, signed=False, zero_point=3)),
        ((0, 11), Width(4, signed=False)),  # the Clip before it ends it at 11
    ],
)
def test_the_width_of_a_grid_is_told_from_its_ends(ends: tuple[int, int], expected: Width) -> None:
    assert Width.holding(*ends) == expected
    assert (expected.ends == ends) == (ends != (0, 11))


@pytest.mark.slow
@torch.no_grad()
def test_qonnx_gives_every_code_also_once_a_file_is_cleaned(
    file: Made,
) -> None:
    pytest.importorskip("qonnx")
    from qonnx.core.modelwrapper import ModelWrapper  # pyright: ignore[reportMissingImports]  qonnx is an extra
    from qonnx.util.cleanup import cleanup_model  # pyright: ignore[reportMissingImports]  qonnx is an extra

    integer, path, described = file
    runtime, expected = TARGETS["qonnx"]().runtime, integer(IMAGES)
    for plainly in (False, True):
        session = runtime.open(path, plainly=plainly)
        assert session.batch == 1
        torch.testing.assert_close(run(session, IMAGES), expected, rtol=1e-4, atol=1e-5)
    names = {layer.name: layer.codes for layer in described.layers}
    layers = integer_layers(integer).values()
    compared = check_codes(path, integer, names, runtime)
    assert compared == sum(layer.codes.numel() for layer in layers)
    codes = compare_site_codes(path, integer, IMAGES, runtime)
    assert len(codes) >= 4
    assert [name for name, one in codes.items() if one.differing] == []

    cleaned = cleanup_model(ModelWrapper(str(path)))
    assert {node.op_type for node in cleaned.graph.node} >= {"Quant", "Conv", "MatMul", "Add"}
    assert "Transpose" not in {node.op_type for node in cleaned.graph.node}
    session = runtime.open(cleaned.model.SerializeToString())
    torch.testing.assert_close(run(session, IMAGES), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_report_tells_no_kernels_and_blames_no_time(
    file: Made,
) -> None:
    pytest.importorskip("qonnx")
    integer, path, described = file
    labels = torch.zeros(len(IMAGES), dtype=torch.long)
    evidence = Evidence(integer, lambda: [(IMAGES, labels)], IMAGES)
    report = export_report(path, path, described, evidence)
    assert report.disagreement == ""
    assert report.runtime.name == "qonnx"
    assert report.integer_share is None
    assert report.why_slow == []
    assert "slower_than_float" not in [found.kind for found in report.health]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of hls4ml's own
def test_hls4ml_parses_weights_of_one_scale(tmp_path: Path) -> None:
    hls4ml = pytest.importorskip("hls4ml")
    pytest.importorskip("qonnx")
    from qonnx.core.modelwrapper import ModelWrapper  # pyright: ignore[reportMissingImports]  qonnx is an extra
    from qonnx.transformation.channels_last import (  # pyright: ignore[reportMissingImports]  qonnx is an extra
        ConvertToChannelsLastAndClean,
    )
    from qonnx.util.cleanup import cleanup_model  # pyright: ignore[reportMissingImports]  qonnx is an extra

    weights, activations, layers = FILES["values"]
    integer, path = (
        converted(weights | {"granularity": "per_tensor"}, activations, layers),
        tmp_path,
    )
    written(integer, path / "m.onnx")
    model = cleanup_model(ModelWrapper(str(path / "m.onnx")))
    model = cleanup_model(model.transform(ConvertToChannelsLastAndClean()))
    given = {"backend": "Vitis", "default_precision": "fixed<32,16>"}
    settings = hls4ml.utils.config_from_onnx_model(model, granularity="name", **given)
    parsed = hls4ml.converters.convert_from_onnx_model(
        model,
        output_dir=str(path / "hls"),
        hls_config=settings,
        backend="Vitis",
        io_type="io_stream",
    )
    weights_of = {
        layer.class_name: np.array(layer.weights["weight"].data)
        for layer in parsed.get_layers()
        if "weight" in layer.weights
    }
    assert {"Conv2D", "Dense"} <= set(weights_of)
    codes = integer_layers(integer)["fc"].codes.numpy()
    assert sorted(weights_of["Dense"].reshape(-1)) == sorted(codes.reshape(-1))
