"""What takes part in a step beside the optimizer, against the papers' formulas in NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.errors import RecipeError
from qtool.numerics.schedules import SCHEDULES
from qtool.quantizers.control import set_progress
from qtool.quantizers.layers import quant_layers
from qtool.recipe.recipe import Recipe
from qtool.settings.section import check
from qtool.training.grid_pull import GridPull
from qtool.training.loop import Trainer
from qtool.training.optimizers import OPTIMIZERS, parameter_groups
from qtool.training.sharpness import Sharpness
from qtool.training.step import TrainingStep
from qtool.training.transition_rate import TransitionRate
from tests.kit import metrics, recipe
from tests.runs.test_resume import LEARNED
from tests.runs.test_stops import ends_as_if_never_stopped

Array = np.ndarray[Any, Any]
SCALE, HIGH = 0.25, 1  # of the 2-bit narrow grid
RATE = 0.1


def network(width: int = 3) -> nn.Module:
    """Return a linear layer of fixed weight scales and float inputs, and a batch norm."""
    torch.manual_seed(0)
    linear = nn.Linear(4, width)
    linear.weight.data *= 0.7
    weights = {"bits": 2, "range": {"name": "fixed", "scale": SCALE}, "granularity": "per_tensor"}
    net = nn.Sequential(linear, nn.BatchNorm1d(width))
    return qtool.prepare(net, {"weights": weights}).train()


def rounded(w: Array) -> Array:
    return np.clip(np.rint(w / SCALE), -HIGH, HIGH) * SCALE


def squares(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits - labels.unsqueeze(1)).square().mean()


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(8, 4), torch.randn(8)


def step_of(net: nn.Module, **keys: Any) -> TrainingStep:
    made = OPTIMIZERS.build("sgd", momentum=0.0)(parameter_groups(net, **keys), RATE)
    return TrainingStep(net, squares, made)


def weight_of(net: nn.Module) -> Array:
    return quant_layers(net)["0"].weight.detach().double().numpy().copy()


def test_cage_takes_the_rounding_error_from_the_weight_beside_the_optimizers_step() -> None:
    plain, pulled = network(), network()
    before = weight_of(plain)
    step_of(plain)(*batch())
    step = step_of(pulled)
    strength = SCHEDULES.build("linear", start=0.0, stop=4.0)
    step.aids.append(GridPull(pulled, step.optimizer, strength))
    set_progress(pulled, 0.75)
    step(*batch())
    expected = weight_of(plain) - RATE * 3.0 * (before - rounded(before))
    np.testing.assert_allclose(weight_of(pulled), expected, rtol=0, atol=1e-6)
    assert np.abs(weight_of(pulled) - weight_of(plain)).max() > 0.01
    for key in ("0.bias", "1.weight"):
        assert torch.equal(pulled.state_dict()[key], plain.state_dict()[key])


def test_cage_pulls_by_the_layers_own_rate_and_leaves_a_frozen_weight() -> None:
    net = network()
    step = step_of(net)
    for group in step.optimizer.param_groups:
        group["lr"] = 0.02
    step.aids.append(GridPull(net, step.optimizer, SCHEDULES.build("constant", value=5.0)))
    layer = quant_layers(net)["0"]
    before = weight_of(net)
    layer.weight.grad = torch.zeros_like(layer.weight)
    for aid in step.aids:
        aid.begin()
        aid.before()
        aid.after()
    expected = before - 0.02 * 5.0 * (before - rounded(before))
    np.testing.assert_allclose(weight_of(net), expected, rtol=0, atol=1e-6)
    layer.freeze()
    before = weight_of(net)
    step(*batch())
    np.testing.assert_array_equal(weight_of(net), before)


def loss_gradients(
    x: Array, y: Array, w: Array, b: Array, gamma: Array, beta: Array
) -> tuple[Array, ...]:
    """Return the gradients of w (as computed with), b, gamma and beta of mean (BN(x w) - y)^2."""
    z = x @ w.T + b
    mean, var = z.mean(0), z.var(0)
    n = (z - mean) / np.sqrt(var + 1e-5)
    g = 2 * (gamma * n + beta - y[:, None]) / z.size
    g_n = g * gamma
    g_z = (g_n - g_n.mean(0) - n * (g_n * n).mean(0)) / np.sqrt(var + 1e-5)
    return g_z.T @ x, g_z.sum(0), (g * n).sum(0), g.sum(0)


def test_saq_follows_the_gradient_of_the_raised_quantized_weights() -> None:
    net, radius = network(), 0.3
    net.get_parameter("1.weight").data.copy_(torch.tensor([0.5, 1.0, 1.5]))
    keys = ("0.weight", "0.bias", "1.weight", "1.bias")
    w, b, gamma, beta = (net.state_dict()[key].double().numpy().copy() for key in keys)
    images, labels = batch()
    x, y = images.double().numpy(), labels.double().numpy()
    first = loss_gradients(x, y, rounded(w), b, gamma, beta)
    length = np.sqrt(sum((g**2).sum() for g in first))
    raised = [
        at + radius * g / length for at, g in zip((rounded(w), b, gamma, beta), first, strict=True)
    ]
    second = loss_gradients(x, y, *raised)
    inside = np.abs(w / SCALE) <= HIGH
    expected = [
        at - RATE * g
        for at, g in zip((w, b, gamma, beta), (second[0] * inside, *second[1:]), strict=True)
    ]
    step = step_of(net)
    step.sharpness = Sharpness(net, radius)
    step(images, labels)
    for key, values in zip(keys, expected, strict=True):
        np.testing.assert_allclose(net.state_dict()[key].numpy(), values, rtol=0, atol=1e-6)
    assert not any(module._forward_hooks for module in net.modules() if module is not net)


def test_saq_in_parts_is_saq_at_once_where_no_norm_sees_the_batch() -> None:
    found = []
    for shares in (1, 4):
        net = network()
        net.register_module("1", nn.Identity())
        step = step_of(net)
        step.sharpness, step.shares = Sharpness(net, 0.2), shares
        step(*batch())
        found.append(weight_of(net))
    np.testing.assert_allclose(*found, rtol=0, atol=1e-6)


def test_the_rate_goes_by_the_codes_that_change() -> None:
    net = network(5)
    momentum, start, gain = 0.5, 0.1, 2.0
    step = step_of(net, latent_apart=True)
    target = SCHEDULES.build("constant", value=0.2)
    aid = TransitionRate(net, step.optimizer, target, momentum=momentum, start=start, gain=gain)
    step.aids.append(aid)
    plain, rates, codes = [], [], [rounded(weight_of(net))]
    running, rate = 0.0, start
    for seed in range(8):
        for group in step.optimizer.param_groups:
            group["lr"] = 0.05  # as the loop sets it
        k = 0.0 if len(codes) == 1 else float(np.mean(codes[-1] != codes[-2]))
        running = momentum * running + (1 - momentum) * k
        rate = max(0.0, rate + gain * (0.2 - running))
        step(*batch(seed))
        codes.append(rounded(weight_of(net)))
        rates.append((aid.measures()["latent_learning_rate"], rate))
        plain += [group["lr"] for group in step.optimizer.param_groups[1:]]
    np.testing.assert_allclose(*np.transpose(rates), rtol=0, atol=1e-6)
    assert len({round(rate, 6) for rate, _ in rates}) > 4  # some codes did change
    assert aid.measures()["transition_rate"] == pytest.approx(running, abs=1e-6)
    assert set(plain) == {0.05}


def test_a_rate_that_would_fall_below_0_stays_there() -> None:
    net = network(5)
    step = step_of(net, latent_apart=True)
    target = SCHEDULES.build("constant", value=0.0)
    step.aids.append(TransitionRate(net, step.optimizer, target, momentum=0.0, start=5.0, gain=1e3))
    step(*batch(0))
    step(*batch(1))
    after = weight_of(net)
    step(*batch(2))
    np.testing.assert_array_equal(weight_of(net), after)
    assert step.optimizer.param_groups[0]["lr"] == 0.0


def test_weights_that_are_quantized_are_apart_where_that_is_asked_for() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    section = {"weights": {"bits": 4}, "overrides": [{"match": "1", "weights": None}]}
    made = qtool.prepare(net, section)
    together = [len(g["params"]) for g in parameter_groups(made) if g["role"] == "weights"]
    apart = [
        len(g["params"])
        for g in parameter_groups(made, latent_apart=True)
        if g["role"] == "weights"
    ]
    assert (together, apart) == ([2], [1, 1])


AIDS = {
    "transition_rate": {
        "target": {"name": "cosine", "start": 0.05, "stop": 0.0},
        "momentum": 0.9,
        "start": 0.3,
    },
    "cage": {"name": "linear", "start": 0.0, "stop": 5.0, "window": [0.2, 1.0]},
    "sharpness_aware": 0.05,
}


def test_a_run_with_aids_ends_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    changes = LEARNED | {"training": LEARNED["training"] | AIDS}
    stops = [((Trainer, "_take_step", 3), (0, 3)), ((Trainer, "_take_step", 6), (1, 3))]
    ends_as_if_never_stopped(changes, stops, tmp_path)
    line = metrics(tmp_path / "whole")[-1]
    assert line["latent_learning_rate"] > 0
    assert 0 < line["transition_rate"] < 1


@pytest.mark.parametrize(
    ("changes", "place", "why"),
    [
        ({"transition_rate": {"target": 1.5}}, "transition_rate.target", "a share, from 0 to 1"),
        ({"transition_rate": {}}, "transition_rate.target", "missing"),
        ({"cage": -1}, "cage", "must not be negative"),
        ({"sharpness_aware": 0}, "sharpness_aware", "more than 0"),
        ({"sharpness_aware": 0.1, "compile": True}, "compile", "leave it out"),
        ({"sharpness_aware": 0.1, "cuda_graph": True}, "cuda_graph", "leave it out"),
        ({"transition_rate": {"target": 0.1}, "cuda_graph": True}, "cuda_graph", "each step"),
        ({"cage": 1, "gradient": "population"}, "cage", "expected gradients"),
    ],
)
def test_what_an_aid_does_not_go_with_is_refused(
    changes: dict[str, Any], place: str, why: str
) -> None:
    with pytest.raises(RecipeError) as error:
        check(Recipe, recipe({f"training.{key}": v for key, v in changes.items()}), "r.yaml")
    assert f"training.{place}" in str(error.value)
    assert why in str(error.value)
