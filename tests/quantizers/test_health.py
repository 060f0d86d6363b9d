"""Health: planted faults are found by name, and a healthy network gives nothing to look at."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import qtool
from qtool.numerics.grid import IntegerGrid
from qtool.quantizers.health import code_findings
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.plan import plan
from qtool.quantizers.weights import WeightQuantizer
from qtool.reports.health import Finding
from tests import kit

SECTION = {"weights": {"bits": 8}, "activations": {"bits": 8, "place": "layer_inputs"}}
IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def prepared(**keys: object) -> nn.Module:
    model = qtool.prepare(kit.float_net(), {**SECTION, **keys}, IMAGES)
    model.train()(IMAGES)  # which brings the scales of 8 bits to where the weights are
    return model.eval()


def layer_of(model: nn.Module, name: str) -> tuple[QuantLayer, WeightQuantizer]:
    layer = quant_layers(model)[name]
    assert layer.weight_quantizer is not None
    return layer, layer.weight_quantizer


def kinds(found: list[Finding]) -> set[tuple[str, str]]:
    return {(finding.layer, finding.kind) for finding in found}


def test_a_healthy_network_gives_nothing_to_look_at() -> None:
    model = prepared()
    assert qtool.health(model, IMAGES) == []
    four = {"bits": 4, "place": "layer_inputs"}
    assert qtool.health(prepared(weights={"bits": 4}, activations=four), IMAGES) == []
    assert not any(row.note for row in plan(model))


def too_wide(model: nn.Module) -> None:
    layer_of(model, "conv2")[1].scale.data[:3] *= 30


def too_narrow(model: nn.Module) -> None:
    layer_of(model, "conv2")[1].scale.data[2:4] *= 1e-4


def at_floor(model: nn.Module) -> None:
    layer_of(model, "fc")[1].scale.data[1] = -1.0


def dead_rows(model: nn.Module) -> None:
    layer_of(model, "conv2")[0].weight.data[4:6] = 0


def all_dead(model: nn.Module) -> None:
    layer_of(model, "conv1")[0].weight.data.zero_()


def dead_relu(model: nn.Module) -> None:
    norm = model.get_submodule("bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.bias.data[2] = -1e3


def blind_input(model: nn.Module) -> None:
    quantizer = quant_layers(model)["conv2"].input_quantizer
    assert quantizer is not None
    quantizer.scale.data.mul_(1e6)


def saturated_input(model: nn.Module) -> None:
    quantizer = quant_layers(model)["conv1"].input_quantizer
    assert quantizer is not None
    quantizer.scale.data.mul_(1e-6)


def constant(model: nn.Module) -> None:
    layer_of(model, "fc")[0].weight.data.zero_()


@pytest.mark.parametrize(
    ("plant", "layer", "kind", "says"),
    [
        (too_wide, "conv2", "few_codes", "3 of 8 rows"),
        (too_narrow, "conv2", "saturated", "2 of 8 rows"),
        (at_floor, "fc", "scale_at_floor", "1 of 5 scales of its weight"),
        (dead_rows, "conv2", "dead_channels", "2 of 8 rows"),
        (all_dead, "conv1", "all_zero", "all weight codes are 0"),
        (dead_relu, "conv2", "dead_channels", "1 of 8 channels of its input"),
        (blind_input, "conv2", "all_zero", "all codes of its input are 0"),
        (saturated_input, "conv1", "saturated", "of its input are at the ends"),
        (constant, "", "constant_output", "the same for every input"),
    ],
)
def test_a_planted_fault_is_found(
    plant: Callable[[nn.Module], None], layer: str, kind: str, says: str
) -> None:
    model = prepared()
    plant(model)
    found = qtool.health(model, IMAGES)
    assert (layer, kind) in kinds(found)
    assert any(says in f.says for f in found if (f.layer, f.kind) == (layer, kind))


def test_codes_of_seven_bit_steps_are_judged_alike_on_their_grid_and_on_that_of_a_file() -> None:
    codes = torch.tensor([[15, -3], [16, 2], [63, 1], [30, 0]], dtype=torch.int8)
    found = [code_findings("fc", codes, IntegerGrid(bits, "narrow")) for bits in (7, 8)]
    assert found[0] == found[1]
    assert [finding.says.split(";")[0] for finding in found[0]] == [
        "1 of 4 rows use weight codes up to 15 only"
    ]


@pytest.mark.parametrize("plant", [too_narrow, dead_rows, all_dead])
def test_the_plan_says_what_is_wrong_with_weights(plant: Callable[[nn.Module], None]) -> None:
    model = prepared()
    plant(model)
    found = qtool.health(model)
    noted = {row.name: row.note for row in plan(model) if row.note}
    assert found
    assert all(finding.says in noted[finding.layer] for finding in found)


def test_one_quantized_relu_that_is_dead_is_found() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
    )
    model = qtool.prepare(
        network, {"activations": {"bits": 4, "place": "relu_outputs"}}, IMAGES
    ).eval()
    assert qtool.health(model, IMAGES) == []
    norm = model.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.bias.data.fill_(-1e3)
    assert ("2", "all_zero") in kinds(qtool.health(model, IMAGES))


def test_a_model_is_left_as_it_was() -> None:
    model = prepared().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    qtool.health(model, (IMAGES, torch.zeros(16)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_pre_hooks for module in quant_layers(model).values())


def test_a_model_that_is_not_prepared_is_refused() -> None:
    with pytest.raises(ValueError, match="prepare"):
        qtool.health(kit.float_net())


@pytest.mark.parametrize("bits", [1, 2])
def test_of_few_levels_most_weights_lie_at_an_end_by_right(bits: int) -> None:
    model = qtool.prepare(nn.Linear(32, 4), {"weights": {"bits": bits}}, torch.randn(4, 32))
    assert qtool.health(model) == []


def test_outputs_of_one_input_are_not_constant() -> None:
    model = prepared()
    assert qtool.health(model, IMAGES[:1]) == []


def test_a_dead_channel_of_a_line_of_values_is_counted_among_its_channels() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 1), nn.Flatten())
    nn.init.constant_(net[0].bias, 0.2)
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = 0, -1
    section = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "every_value"}}
    x = torch.rand(32, 3, 9)
    found = qtool.health(qtool.prepare(net, section, x), x)
    said = [f.says for f in found if (f.layer, f.kind) == (":relu0", "dead_channels")]
    assert said == ["1 of 8 channels of its values are 0 for every input"]
