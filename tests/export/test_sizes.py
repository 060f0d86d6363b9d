"""How large a file is on disk, for every weight that it holds."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

import qtool
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.integer.layers import integer_layers

WIDTHS = [
    (1, "narrow", 1.1),
    (2, "narrow", 1.7),  # ternary
    (2, "full", 2.1),
    (2, "mid_rise", 2.1),
    (3, "narrow", 3.1),
    (4, "narrow", 4.1),
    (8, "narrow", 8.1),
]


def bits_a_weight(
    model: nn.Module, images: torch.Tensor, path: Path, bits: int, grid: str
) -> float:
    """Return the bits of a whole file for each weight of a network of one width."""
    weights = {"bits": bits, "grid": grid, "range": "absmax", "saturation": "allow"}
    section = {"weights": weights, "activations": {"bits": 8}}
    integer = qtool.convert(qtool.prepare(model.eval(), section, images).eval(), [images])
    qtool.export_onnx(integer, images[:1], path)
    count = sum(layer.codes.numel() for layer in integer_layers(integer).values())
    return 8 * path.stat().st_size / count


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "grid", "most"), WIDTHS)
def test_a_network_of_twelve_million_weights_takes_little_more_than_its_codes(
    bits: int, grid: str, most: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    found = bits_a_weight(resnet18(), torch.randn(2, 3, 64, 64), tmp_path / "m.onnx", bits, grid)
    assert found <= most


def test_a_narrower_grid_makes_a_smaller_file_of_a_small_network(tmp_path: Path) -> None:
    def small() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(256, 96), nn.ReLU(), nn.Linear(96, 10))

    images, path = torch.randn(4, 1, 16, 16), tmp_path / "m.onnx"
    found = [bits_a_weight(small(), images, path, bits, "narrow") for bits in (2, 3, 4)]
    assert found[0] + 0.2 < found[1] < found[2] - 0.6
    graph = onnx.load(str(path)).graph
    assert not graph.value_info
    made = {name: node.op_type for node in graph.node for name in node.output}
    biases = [n.input for n in graph.node if n.op_type == "DequantizeLinear" and len(n.input) == 2]
    # 96 scales of a bias take more bytes than a product, 10 do not
    assert [made.get(scale) for _, scale in biases] == ["Mul", None]
    operators = [node.op_type for node in OnnxRuntime().optimized(path).node]
    assert operators.count("QGemm") == 2
