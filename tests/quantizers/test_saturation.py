"""Weights in fewer steps where they could saturate without VNNI: in training, and afterwards."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.integer.layers import IntegerLayer, integer_layers
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.ranges import RANGES
from qtool.numerics.saturation import can_saturate, largest_byte
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.plan import mean_weight_bits, plan
from qtool.quantizers.weights import WeightQuantizer

IMAGES = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0)).abs()
INPUTS = {"bits": 8, "place": "layer_inputs"}
RULES = ["absmax", "mse", "learned", "percentile", "mean_abs", "he_uniform", "dorefa"]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 5),
    )  # fmt: skip


def prepared(weights: dict[str, Any], inputs: dict[str, Any] = INPUTS) -> nn.Module:
    section = {"weights": {"bits": 8, "range": "absmax", **weights}, "activations": inputs}
    return qtool.prepare(network().eval(), section, IMAGES)


def weight_of(layer: QuantLayer) -> WeightQuantizer:
    assert layer.weight_quantizer is not None
    return layer.weight_quantizer


def steps(model: nn.Module) -> list[int]:
    return [weight_of(layer).known_grid.bits for layer in quant_layers(model).values()]


def saturating(layer: IntegerLayer, largest: int = 255) -> Tensor:
    return can_saturate(layer.codes, largest, groups=getattr(layer, "groups", 1))


def test_layers_that_could_saturate_take_steps_of_seven_bits_and_depthwise_ones_do_not() -> None:
    assert steps(prepared({})) == [8, 8, 8]
    assert steps(prepared({"saturation": "avoid"})) == [7, 8, 7]


@pytest.mark.parametrize(
    ("bits", "grid", "inputs", "expected"),
    [
        (8, "narrow", {"bits": 7, "grid": "unsigned"}, 8),  # 127 * 254 fits
        (8, "narrow", {"bits": 7, "grid": "full"}, 7),  # 191 * 254 does not
        (8, "narrow", {"bits": 4}, 7),  # auto may become full: 135 * 254
        (8, "narrow", {"bits": 4, "grid": "unsigned"}, 8),
        (7, "full", {"bits": 8}, 7),
        (7, "mid_rise", {"bits": 8}, 6),  # codes of +-127, two apart
    ],
)
def test_the_largest_byte_of_the_input_decides(
    bits: int, grid: str, inputs: dict[str, Any], expected: int
) -> None:
    weights = {"bits": bits, "grid": grid, "saturation": "avoid"}
    assert steps(prepared(weights, INPUTS | inputs))[0] == expected


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"bits": 8}, [7, 8, 7]),
        ({"bits": 4}, [7, 8, 8]),  # images have 8 bits, and what is rectified no sign
    ],
)
def test_the_quantizer_where_a_value_is_made_decides(
    inputs: dict[str, Any], expected: list[int]
) -> None:
    model = prepared({"saturation": "avoid"}, {"place": "every_value", **inputs})
    assert steps(model) == expected
    again = copy.deepcopy(model)
    assert steps(again) == expected
    integer = qtool.convert(again)
    for layer in integer_layers(integer).values():
        assert layer.spec.input is not None
        assert not saturating(layer, largest_byte(layer.spec.input)).any()


def test_a_layer_with_a_float_input_keeps_its_steps() -> None:
    section = {"weights": {"bits": 8, "saturation": "avoid"}}
    assert steps(qtool.prepare(network(), section)) == [8, 8, 8]


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("rule", RULES)
def test_every_range_fits_the_grid_with_fewer_steps(rule: str, granularity: str) -> None:
    torch.manual_seed(2)
    weight = torch.randn(5, 12)
    keys = {"bits": 8, "range": rule, "granularity": granularity, "saturation": "avoid"}
    model = qtool.prepare(
        nn.Sequential(nn.Linear(12, 5)), {"weights": keys, "activations": INPUTS}, weight
    )
    layer = quant_layers(model)["0"]
    quantizer = weight_of(layer)
    rows = quantizer.before_rounding(layer.weight.detach())
    rows = rows.reshape(quantizer.scale.numel(), -1)
    fan_in = {"fan_in": 12} if rule == "he_uniform" else {}
    expected = RANGES.build(rule, **fan_in)(
        layer.weight.detach().reshape(len(rows), -1), IntegerGrid(7, "narrow")
    )
    assert torch.equal(quantizer.scale.detach().flatten(), expected)
    assert quantizer.on_grid.codes(layer.weight).abs().max() <= 63


@pytest.mark.parametrize("weights", [{"range": "learned"}, {"grid": "full"}, {"range": "dorefa"}])
def test_training_keeps_the_codes_within_the_steps(weights: dict[str, Any]) -> None:
    model = prepared(weights | {"saturation": "avoid"}).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for _ in range(8):
        optimizer.zero_grad()
        model(IMAGES).square().sum().sqrt().backward()
        optimizer.step()
    integer = qtool.convert(model.eval())
    for layer in integer_layers(integer).values():
        assert not saturating(layer).any()
        assert layer.spec.weight_bits == 8
    assert integer_layers(integer)["6"].codes.abs().max() in (62, 63, 64)


def test_a_state_goes_from_one_prepared_model_to_another_and_keeps_the_steps() -> None:
    first = prepared({"saturation": "avoid", "range": "learned"})
    second = prepared({"saturation": "avoid", "range": "learned"})
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(1.5)
    second.load_state_dict(first.state_dict())
    assert steps(second) == [7, 8, 7]
    assert torch.equal(first(IMAGES), second(IMAGES))


def test_the_plan_says_what_may_saturate_and_what_avoids_it() -> None:
    rows = plan(prepared({}))
    assert [row.may_saturate for row in rows] == [True, False, True]
    rows = plan(avoided := prepared({"saturation": "avoid"}))
    assert not any(row.may_saturate for row in rows)
    assert [row.weights for row in rows] == [
        "8-bit narrow, 7-bit steps", "8-bit narrow", "8-bit narrow, 7-bit steps",
    ]  # fmt: skip
    assert mean_weight_bits(avoided) == 8  # as wide on disk
    assert "7-bit steps" in repr(avoided)


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"range": "learned"},
        {"grid": "full", "granularity": "per_tensor"},
        {"bits": 7, "grid": "mid_rise"},
        {"range": "dorefa"},
        {"freezing": {"threshold": 0.1}},
    ],
    ids=str,
)
def test_channels_of_a_trained_model_are_rounded_anew(weights: dict[str, Any]) -> None:
    model = prepared(weights)
    with torch.no_grad():
        model[0].weight[0] *= 0.01  # with one scale for all, its codes are small
        if weights.get("range") == "learned":
            for layer in quant_layers(model).values():
                weight_of(layer).scale.data /= 12  # LSQ starts wide at 8 bits
    before = integer_layers(qtool.convert(model))
    after = integer_layers(avoided := qtool.convert(model, saturation="avoid"))
    counts = {}
    for name, layer in before.items():
        rows = saturating(layer)
        counts[name] = int(rows.sum())
        assert after[name].spec.fewer_steps == counts[name]
        assert not saturating(after[name]).any()
        assert torch.equal(layer.codes[~rows], after[name].codes[~rows])
        assert layer.weight_scale is not None
        for channel in rows.nonzero().flatten().tolist():
            was, now = layer.real_weight()[channel], after[name].real_weight()[channel]
            # half a step of the coarser grid, and half of one of the finer
            assert after[name].weight_scale is not None
            coarse = float(after[name].weight_scale[channel]) * layer.weight_on_grid.grid.code_step
            assert (was - now).abs().max() <= 0.76 * coarse
            assert after[name].codes[channel].abs().max() in (62, 63, 64)
    assert counts["0"] > 0
    assert counts["3"] == 0
    assert f"0: {counts['0']} of 6 channels rounded anew" in "; ".join(avoided.qtool.notes)


def test_layers_that_share_a_weight_are_rounded_anew_each_by_itself() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    net[2].weight = net[0].weight
    x = torch.rand(4, 8)
    section = {"weights": {"bits": 8, "range": "absmax"}, "activations": INPUTS}
    model = qtool.prepare(net, section, x)
    weight_of(quant_layers(model)["2"]).scale.data *= 0.8
    layers = integer_layers(qtool.convert(model, saturation="avoid"))
    assert all(layer.spec.fewer_steps for layer in layers.values())
    assert not any(saturating(layer).any() for layer in layers.values())
    assert quant_layers(model)["0"].weight is quant_layers(model)["2"].weight
