"""Layers as products of matrices: held against what the layers themselves give."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import qtool
from qtool.post_training.held_codes import codes_of, hold_codes, rows_of
from qtool.post_training.patches import of_positions, patches, product, taken
from qtool.quantizers.layers import QuantLayer, quant_layers
from tests.post_training.kit import only_layer

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "linear of tokens": (lambda: nn.Linear(6, 5), (2, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, padding=1), (2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 9)),
    "same": (lambda: nn.Conv2d(4, 6, (3, 2), padding="same"), (2, 4, 8, 9)),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 8, 9)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, dilation=2), (2, 4, 8, 9)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 8, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), stride=(1, 2, 1)), (2, 2, 3, 4, 5)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        (2, 4, 5, 6),
    ),
    "transposed, grouped": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), groups=2, dilation=2, padding=3),
        (2, 4, 5, 6),
    ),
    "transposed, 1": (lambda: nn.ConvTranspose1d(2, 3, 4, stride=2), (2, 2, 5)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_a_product_of_its_patches_and_its_rows(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = only_layer(make(), torch.randn(shape))
    expected = layer(x)
    assert layer.weight_quantizer is not None
    rows = layer.layout.rows(layer.weight_quantizer(layer.weight))
    view = patches(layer, x, expected.shape)
    made = of_positions(layer, expected)
    axes = made.ndim - 1
    assert view.shape[:axes] == made.shape[:axes]
    places = torch.arange(made.shape[:axes].numel())
    bias = 0 if layer.bias is None else layer.bias
    given = product(taken(view, places, axes).flatten(2), rows) + bias
    torch.testing.assert_close(given, taken(made, places, axes), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["conv2d", "transposed, grouped", "linear"])
@pytest.mark.parametrize(
    "weights",
    [
        {"bits": 1},
        {"bits": 3, "grid": "mid_rise", "granularity": "per_tensor"},
        {"bits": 8, "grid": "full"},
        {"bits": 2, "grid": "ternary"},
        {"bits": 4, "range": "dorefa"},
        {"bits": 4, "freezing": {"threshold": 0.1}},
    ],
    ids=str,
)
def test_codes_that_were_chosen_are_those_of_rounding_to_nearest(
    name: str, weights: dict[str, object]
) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, _ = only_layer(make(), torch.randn(shape), weights)
    before = codes_of(layer)
    there = before.unique()
    chosen = there[torch.randint(len(there), before.shape)]  # not what rounding would give
    hold_codes(layer, chosen)
    assert torch.equal(codes_of(layer), chosen)
    quantizer = layer.weight_quantizer
    assert quantizer is not None
    levels = quantizer.on_grid.values(chosen)
    torch.testing.assert_close(layer.layout.rows(quantizer(layer.weight)), levels, rtol=0, atol=0)
    torch.testing.assert_close(rows_of(layer), levels, rtol=0, atol=0)


def test_codes_beyond_the_grid_are_refused() -> None:
    layer, _ = only_layer(nn.Linear(3, 2), torch.randn(4, 3), {"bits": 4})
    with pytest.raises(ValueError, match="codes beyond the grid, which ends at 7"):
        hold_codes(layer, torch.full((2, 3), 8.0))


def test_a_layer_that_shares_its_weight_gets_one_of_its_own() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    settings = {"weights": {"bits": 4}, "activations": {"bits": 8}}
    model = qtool.prepare(nn.Sequential(first, second).eval(), settings, torch.randn(2, 4))
    one, other = (layer for layer in quant_layers(model).values())
    kept = codes_of(other)
    hold_codes(one, torch.zeros(4, 4))
    assert torch.equal(codes_of(other), kept)
    assert torch.equal(codes_of(one), torch.zeros(4, 4))
    assert isinstance(one, QuantLayer)
