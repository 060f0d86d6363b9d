"""A file whose values all have quantizers: integer kernels throughout, and the model's codes."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.export.proof.gate import run
from qtool.export.proof.lint import lint
from qtool.export.proof.site_codes import compare_site_codes
from qtool.export.repair.annotations import annotations_of
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing.annotation import read_annotations
from qtool.export.writing.layer_metadata import read_layers
from qtool.integer.converted import converted_state
from qtool.reports.result import Json

RUNTIME = OnnxRuntime()
CHANNELS = 8


def layer(act: type[nn.Module], kernel: int = 3, groups: int = 1) -> nn.Sequential:
    """Return convolution, norm and activation."""
    return nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(CHANNELS),
        act(),
    )


class Squeeze(nn.Module):
    """Squeeze and excitation, [B, C, H, W] to the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(CHANNELS, 4, 1), nn.Conv2d(4, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(gate)


class Shuffled(nn.Module):
    """One half of the channels through a layer, then both shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        y = torch.cat([a, F.relu(self.bn(self.conv(b)))], 1)
        batch, channels, height, width = y.shape
        y = y.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return y.view(batch, channels, height, width)


class Everything(nn.Module):
    """Each kind of join, and operators that pass values on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.first, self.second = layer(nn.ReLU), layer(nn.Identity)
        self.clipped, self.hard = layer(nn.ReLU6), layer(nn.Hardswish, groups=CHANNELS)
        self.squeeze, self.smooth, self.shuffled = Squeeze(), layer(nn.SiLU), Shuffled()
        self.pool, self.transition = nn.MaxPool2d(3, 2, 1), nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.norm, self.average = nn.BatchNorm2d(2 * CHANNELS), nn.AvgPool2d(2)
        self.narrow, self.head = nn.Conv2d(2 * CHANNELS, CHANNELS, 1), nn.Linear(CHANNELS, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x)))
        x = F.relu(self.second(self.first(x)) + x)
        x = self.squeeze(self.hard(self.clipped(x)))
        x = self.shuffled(self.smooth(x))
        x = F.relu(self.norm(torch.cat([x, self.transition(x)], 1)))
        x = self.average(F.relu(self.narrow(x)))
        return self.head(x.mean((2, 3)))


@dataclass
class Exported:
    """An integer model and its file."""

    integer: nn.Module
    path: Path
    graph: onnx.GraphProto
    described: Json


def images(count: int, px: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, px, px, generator=torch.Generator().manual_seed(seed))


def integer_model(bits: int) -> nn.Module:
    torch.manual_seed(0)
    model = Everything()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    with torch.no_grad():
        for seed in range(8):
            model(images(8, seed=seed))
    wants = {"bits": bits, "place": "every_value", "join_bits": 8}
    prepared = qtool.prepare(
        model.eval(), {"weights": {"bits": bits}, "activations": wants}, images(8)
    )
    qtool.round_biases(prepared)
    return qtool.convert(prepared, [images(8)])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    path = tmp_path_factory.mktemp("every_value") / "model.onnx"
    integer = integer_model(4)
    described = qtool.export_onnx(integer, images(2), path)
    return Exported(integer, path, RUNTIME.optimized(path), described)


def test_every_operator_is_an_integer_kernel(exported: Exported) -> None:
    counted = Counter(node.op_type for node in exported.graph.node)
    assert counted["QuantizeLinear"] == 1  # of the images
    assert counted["DequantizeLinear"] <= 1  # of the logits
    # 11 convolutions, a norm that is not folded, an average pooling
    assert counted["QLinearConv"] == 13
    assert counted["QGemm"] == 1
    # each a join; of the 8 other additions, each gives a value to a layer of fewer bits
    assert counted["QLinearGlobalAveragePool"] == 2
    assert counted["QLinearMul"] == 3  # the squeeze's, the hardswish's and the SiLU's
    assert counted["QLinearSigmoid"] == 1
    assert counted["QLinearAdd"] >= 1
    assert not set(counted) & {
        *("Conv", "Gemm", "MatMul", "Add", "Mul", "Relu", "Sigmoid", "HardSigmoid", "HardSwish"),
        *("Concat", "AveragePool", "GlobalAveragePool", "ReduceMean", "BatchNormalization"),
    }
    orders = [
        list(node.attribute[0].ints) for node in exported.graph.node if node.op_type == "Transpose"
    ]
    assert [0, 2, 1, 3, 4] not in orders  # channels are shuffled innermost


def test_every_code_is_the_models(exported: Exported) -> None:
    compared = compare_site_codes(exported.path, exported.integer, images(8, seed=9), RUNTIME)
    assert {"shuffled:cat0.codes", "squeeze:avg_pool0.codes", ":add0.codes"} <= set(compared)
    assert {name: one for name, one in compared.items() if one.differing} == {}


@pytest.mark.parametrize("count", [1, 5])
def test_logits_are_the_models_for_any_batch(exported: Exported, count: int) -> None:
    given = images(count, seed=3)
    with torch.no_grad():
        expected = exported.integer(given)
    found = run(RUNTIME.open(exported.path), given)
    assert (found - expected).abs().max() <= 1e-5 * expected.std()


def test_the_annotations_name_every_quantized_value(exported: Exported) -> None:
    model = onnx.load(str(exported.path))
    assert lint(model, RUNTIME) == []
    told = annotations_of(model, read_layers(model), RUNTIME)  # by the graph and its codes
    assert set(told) == set(read_annotations(model.graph))
    named = {entry.tensor_name for entry in model.graph.quantization_annotation}
    sites = {
        f"{site.site}.codes" for site in converted_state(exported.integer).sites if site.output
    }
    assert sites <= named
    assert {":batch_norm5.weight", ":avg_pool0.weight"} <= named
    assert ":silu0.gate.codes" in named


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_a_file_for_images_of_another_size(tmp_path: Path, bits: int) -> None:
    integer, path, given = integer_model(bits), tmp_path / "model.onnx", images(4, 48)
    qtool.export_onnx(integer, given, path, batch=None)
    compared = compare_site_codes(path, integer, given, RUNTIME)
    assert not [name for name, one in compared.items() if one.differing]
    assert "QLinearConv" in {node.op_type for node in RUNTIME.optimized(path).node}
