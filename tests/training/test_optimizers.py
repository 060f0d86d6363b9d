import copy

import pytest
import torch
from torch import nn

import qtool
from qtool.errors import RecipeError
from qtool.graph.exact import load_optimizer
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


@pytest.mark.parametrize("name", [*OPTIMIZERS.names(), "RAdam", "SGD"])
def test_only_weights_decay(name):
    optimizer = OPTIMIZERS.build(name, weight_decay=0.3)(parameter_groups(model()), 0.1)

    decay = {(g["role"], g["weight_decay"]) for g in optimizer.param_groups}
    assert decay == {("weights", 0.3), ("scales", 0.0), ("others", 0.0)}


def test_the_rate_of_a_layer_is_multiplied_by_its_own_factor():
    optimizer = OPTIMIZERS.build("sgd")(parameter_groups(model()), 0.1)
    set_rate(optimizer, 0.04)

    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 0.08, 0.04, 0.04]


TORCHS = sorted(OPTIMIZERS._of_torch)


def parameters():
    torch.manual_seed(1)
    tensors = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    roles = ("weights", "others")
    return tensors, [
        {"params": [p], "role": role, "rate_scale": 1.0}
        for p, role in zip(tensors, roles, strict=True)
    ]


def take_steps(optimizer, tensors, seeds):
    for seed in seeds:
        torch.manual_seed(seed)
        for tensor in tensors:
            tensor.grad = torch.randn_like(tensor)
        set_rate(optimizer, 0.1 / seed)
        optimizer.step()


@pytest.mark.parametrize("name", [*OPTIMIZERS.names(), *TORCHS])
def test_an_optimizer_goes_on_from_its_state_bit_for_bit(name):
    tensors, groups = parameters()
    whole = OPTIMIZERS.build(name)(groups, 0.1)
    take_steps(whole, tensors, (1, 2))
    again, groups = parameters()
    resumed = OPTIMIZERS.build(name)(groups, 0.1)
    with torch.no_grad():
        for tensor, kept in zip(again, tensors, strict=True):
            tensor.copy_(kept)
    load_optimizer(resumed, copy.deepcopy(whole.state_dict()))
    for optimizer, trained in ((whole, tensors), (resumed, again)):
        take_steps(optimizer, trained, (3, 4))
    assert all(map(torch.equal, again, tensors))


def test_an_optimizer_of_other_tensors_is_refused_with_their_numbers():
    tensors, groups = parameters()
    whole = OPTIMIZERS.build("sgd")(groups, 0.1)
    take_steps(whole, tensors, (1,))
    fewer = OPTIMIZERS.build("sgd")(groups[:1], 0.1)
    with pytest.raises(ValueError, match="trains 2 tensors, and here 1 are to be trained; if ano"):
        load_optimizer(fewer, whole.state_dict())


@pytest.mark.parametrize("name", TORCHS)
def test_an_optimizer_of_torch_steps_as_torch_has_it(name):
    tensors, groups = parameters()
    made = OPTIMIZERS.build(name, **GIVEN.get(name, {}))(groups, 0.1)
    plain, _ = parameters()
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in GIVEN.get(name, {}).items()}
    decay = {"weight_decay": 0.0} if "weight_decay" in made.defaults else {}
    other = getattr(torch.optim, name)(
        [
            {"params": plain[:1], "rate_scale": 1.0},
            {"params": plain[1:], "rate_scale": 1.0} | decay,
        ],
        **given,
    )
    for optimizer, trained in ((made, tensors), (other, plain)):
        take_steps(optimizer, trained, (1, 2))
    for one, two in zip(tensors, plain, strict=True):
        torch.testing.assert_close(one.detach(), two.detach(), rtol=1e-5, atol=1e-7)


GIVEN = {
    "NAdam": {"betas": [0.8, 0.9], "weight_decay": 0.3, "decoupled_weight_decay": True},
    "SGD": {"momentum": 0.5, "dampening": 0.25, "weight_decay": 0.1},
    "Adafactor": {"eps": [None, 0.01]},
}


@pytest.mark.parametrize(
    ("name", "params", "told"),
    [
        ("Radam", {}, "unknown optimizer 'Radam'; did you mean RAdam?"),
        ("RAdam", {"beta": 0.9}, "RAdam has no parameter beta; did you mean betas?"),
        ("RAdam", {"betas": [0.9]}, "[0.9] is not a list of 2 numbers"),
        ("RAdam", {"betas": [0.9, 1.5]}, "RAdam refuses its parameters: Invalid beta parameter"),
        ("RAdam", {"weight_decay": "much"}, "weight_decay: "),
        ("RAdam", {"lr": 0.1}, "RAdam has no parameter lr"),
        ("LBFGS", {}, "LBFGS computes the loss several times in a step; choose another"),
        ("Muon", {}, "Muon takes matrices only"),
        ("Optimizer", {}, "unknown optimizer 'Optimizer'"),
    ],
)
def test_what_an_optimizer_cannot_be_is_said(name, params, told):
    with pytest.raises(RecipeError) as error:
        OPTIMIZERS.build(name, **params)
    assert told in str(error.value)


def test_steps_of_adam_and_rmsprop_by_hand():
    for name in ("adam", "rmsprop"):
        weight = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
        groups = [{"params": [weight], "role": "weights", "rate_scale": 1.0}]
        optimizer = OPTIMIZERS.build(name, weight_decay=0.1)(groups, 0.5)
        m = v = torch.zeros(1, 2, dtype=torch.float64)
        expected = weight.detach().clone()
        for step, slope in enumerate(([1.0, 2.0], [0.5, -1.0]), 1):
            weight.grad = torch.tensor([slope], dtype=torch.float64)
            optimizer.step()
            g = torch.tensor([slope], dtype=torch.float64) + 0.1 * expected
            if name == "adam":
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                moved = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            else:
                v = 0.99 * v + 0.01 * g**2
                moved = g / (v.sqrt() + 1e-8)
            expected = expected - 0.5 * moved
        torch.testing.assert_close(weight.detach(), expected)


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
