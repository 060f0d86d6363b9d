"""What layers cost, against networks that are counted by hand and files that are written."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qtool.bits.costs import cost_of_network, macs_of
from qtool.conversion.to_integer import convert
from qtool.export.writing.onnx_qdq import write_onnx
from qtool.export.writing.request import Writing
from qtool.quantizers.prepare import prepare
from qtool.settings.tensors import WeightQuantization


class Tied(nn.Module):
    """A convolution, two linear layers with one weight, and a product of matrices: [B, 2, 6, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(2, 4, 3), nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu().mean((2, 3))
        return self.second(self.first(x).relu()) @ torch.ones(4, 5)


def test_multiplications_and_bits_of_a_network_are_those_counted_by_hand() -> None:
    torch.manual_seed(0)
    quantization = {
        "weights": {"bits": 4, "range": "absmax"},
        "activations": {"bits": 8, "range": "min_max", "place": "layer_inputs"},
        "overrides": [{"match": "second", "activations": {"bits": 3}}],
    }
    images = torch.randn(8, 2, 6, 6)
    model = prepare(Tied().eval(), quantization, images)
    cost = cost_of_network(model, macs_of(Tied(), images[:1]))
    layers = cost.layers
    assert {n: la.macs for n, la in layers.items()} == {
        "conv": 4 * 4 * (4 * 2 * 3 * 3),
        "first": 16,
        "second": 16,
    }
    assert [la.input_bits for la in layers.values()] == [8, 8, 3]
    assert [la.stored for la in layers.values()] == [True, True, False]
    widths = {"conv": 2, "first": 4, "second": 4}
    by_hand = 1152 * 2 * 8 + 16 * 4 * 8 + 16 * 4 * 3 + 4 * 5 * 32 * 32
    assert cost.bit_operations(widths) == by_hand
    assert cost.mean_bits(widths) == (72 * 2 + 16 * 4 + 16 * 4) / 104


class Narrow(nn.Module):
    """Two layers whose codes are not whole groups: [B, 3, 5, 5] to 7."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 37, 3, padding=1), nn.Linear(37, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


@pytest.mark.slow  # files are written
def test_bytes_at_a_width_are_those_that_a_file_grows_by(tmp_path: Path) -> None:
    """Names of types in the metadata and lengths in protobuf are the bytes that are left over."""
    torch.manual_seed(0)
    images, network, real, told = torch.randn(4, 3, 5, 5), Narrow().eval(), [], []
    for bits in (8, 3):
        quantization = {
            "weights": {"bits": bits, "range": "absmax"},
            "activations": {"bits": 8, "range": "min_max"},
        }
        model = prepare(network, quantization, images)
        write_onnx(convert(model, [images]), images, tmp_path / "f.onnx", Writing())
        real.append((tmp_path / "f.onnx").stat().st_size)
        layers = cost_of_network(model, macs_of(network, images[:1])).layers.values()
        settings = WeightQuantization.model_validate({"bits": bits})
        found = [layer.bytes_at(settings) for layer in layers]
        told.append(sum(each.all for each in found) + max(each.shared for each in found))
    assert abs((real[0] - real[1]) - (told[0] - told[1])) < 100, (real, told)
    assert real[0] != real[1]
