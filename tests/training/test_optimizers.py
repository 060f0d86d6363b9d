import pytest
import torch
from torch import nn

import qtool
from qtool.training.optimizers import OPTIMIZERS, parameter_groups, set_rate


def model():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    section = {
        "weights": {"bits": 4, "learning_rate_scale": 0.5},
        "activations": {"bits": 4, "place": "layer_inputs"},
        "overrides": [{"match": "3", "weights": {"learning_rate_scale": 2.0}}],
    }
    return qtool.prepare(net, section, torch.randn(2, 1, 4, 4))


def named(groups, net):
    names = {id(p): name for name, p in net.named_parameters()}
    return [(g["role"], g["rate_scale"], {names[id(p)] for p in g["params"]}) for g in groups]


def test_every_parameter_is_in_one_group_by_its_role():
    net = model()
    scales = {f"{layer}.{kind}_quantizer.scale" for layer in "03" for kind in ("weight", "input")}

    assert named(parameter_groups(net), net) == [
        ("weights", 0.5, {"0.weight"}),
        ("weights", 2.0, {"3.weight"}),
        ("scales", 1.0, scales),
        ("others", 1.0, {"0.bias", "1.weight", "1.bias", "3.bias"}),
    ]


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_only_weights_decay(name):
    optimizer = OPTIMIZERS.build(name, weight_decay=0.3)(parameter_groups(model()), 0.1)

    decay = {(g["role"], g["weight_decay"]) for g in optimizer.param_groups}
    assert decay == {("weights", 0.3), ("scales", 0.0), ("others", 0.0)}


def test_the_rate_of_a_layer_is_multiplied_by_its_own_factor():
    optimizer = OPTIMIZERS.build("sgd")(parameter_groups(model()), 0.1)
    set_rate(optimizer, 0.04)

    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 0.08, 0.04, 0.04]


def test_one_step_of_sgd_is_momentum_and_decay_by_hand():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    groups = [{"params": [weight], "role": "weights", "rate_scale": 1.0}]
    optimizer = OPTIMIZERS.build("sgd", momentum=0.9, weight_decay=0.1)(groups, 0.5)
    velocity, expected = torch.zeros(1, 2), weight.detach().clone()
    for grad in (torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, -1.0]])):
        weight.grad = grad
        optimizer.step()
        velocity = 0.9 * velocity + grad + 0.1 * expected
        expected = expected - 0.5 * velocity

    torch.testing.assert_close(weight.detach(), expected)
