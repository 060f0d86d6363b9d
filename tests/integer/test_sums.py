"""An integer layer's sums are exact, whatever it takes to hold them."""

import pytest
import torch
from torch import nn

import qtool
from qtool.integer.layers import IntegerLayer, integer_layers

LARGEST = 127 * 255  # of a product of 8-bit codes, the input's unsigned


def layer_of(
    inputs: int, bias: int, grid: str = "unsigned", first: float = 1.0, last: float = 1.0
) -> IntegerLayer:
    """Return a layer [B, inputs] -> [B, 1] whose weight codes are all 127, with a bias code.

    Its input has 8 bits on `grid`, and its range is that of values from `first` to `last`.
    """
    net = nn.Sequential(nn.Linear(inputs, 1))
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    section = {
        "weights": {"bits": 8, "range": "absmax"},
        "activations": {"bits": 8, "place": "layer_inputs", "grid": grid, "range": "ema_min_max"},
    }
    model = qtool.prepare(net, section, torch.linspace(first, last, inputs)[None]).eval()
    layer = integer_layers(qtool.convert(model))["0"]
    assert (layer.codes == 127).all()
    assert layer.bias is not None
    assert layer.bias.dtype == torch.int32
    layer.bias.fill_(bias)
    layer._work_type = None  # the proof chose it for the bias of before
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


@pytest.mark.parametrize(
    ("grid", "first", "last", "lowest", "highest"),
    [
        ("unsigned", 0.0, 1.0, 0, 255),
        ("full", -1.0, 1.0, -128, 127),
        ("narrow", -1.0, 1.0, -127, 127),
        ("asymmetric", 0.0, 1.0, 0, 255),
        ("asymmetric", -1.0, 0.0, -255, 0),
        ("asymmetric", -3.0, 1.0, -191, 64),
    ],
)
@pytest.mark.parametrize("bias", [0, 1_000, -1_000])
def test_the_largest_sum_is_that_of_the_worst_input(
    grid: str, first: float, last: float, lowest: int, highest: int, bias: int
) -> None:
    layer = layer_of(8, bias, grid, first, last)
    ends = torch.tensor([[-1e6], [1e6]]).expand(2, 8)
    sums = layer(ends).squeeze(1) / layer.bias_scale
    assert [round(total) for total in sums.tolist()] == [
        8 * 127 * lowest + bias,
        8 * 127 * highest + bias,
    ]
    worst = 8 * 127 * max(-lowest, highest)
    assert layer.largest_sum() == worst + abs(bias)
