"""An integer layer's sums are exact, whatever it takes to hold them."""

import pytest
import torch
from torch import nn

import qtool
from qtool.integer.layers import IntegerLayer, integer_layers

LARGEST = 127 * 255  # of a product of 8-bit codes, the input's unsigned


def layer_of(inputs: int, bias: int) -> IntegerLayer:
    """Return a layer [B, inputs] -> [B, 1] whose weight codes are all 127, with a bias code."""
    net = nn.Sequential(nn.Linear(inputs, 1))
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    section = {
        "weights": {"bits": 8, "range": "absmax"},
        "activations": {"bits": 8, "grid": "unsigned", "range": "absmax"},
    }
    model = qtool.prepare(net, section, torch.ones(1, inputs)).eval()
    layer = integer_layers(qtool.convert(model, []))["0"]
    assert (layer.codes == 127).all()
    assert layer.bias is not None
    assert layer.bias.dtype == torch.int32
    layer.bias.fill_(bias)
    return layer


@pytest.mark.parametrize(
    ("inputs", "bias"),
    [
        (600, 1 - 600 * LARGEST),  # products add up to more than 2^24, and with the bias to 1
        (500, -(2**24) - 1),  # products stay below 2^24, the bias alone does not
        (66_000, 1 - 66_000 * LARGEST),  # near the end of int32
    ],
)
def test_sums_that_float32_cannot_hold_are_exact(inputs: int, bias: int) -> None:
    layer = layer_of(inputs, bias)
    total = inputs * LARGEST + bias
    assert abs(total) < 2**31
    expected = torch.tensor(float(total)) * layer.bias_scale
    assert torch.equal(layer(torch.full((1, inputs), 1e6)), expected.unsqueeze(0))
