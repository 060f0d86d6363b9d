"""Roundings against NumPy, and the random ones by their distribution."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qtool.numerics.grid import IntegerGrid
from qtool.numerics.roundings import ROUNDINGS, TRAINING_ONLY, deployed
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.settings.tensors import ActivationQuantization, WeightQuantization

DRAWS = 40_000
RANDOM = sorted(TRAINING_ONLY)
GRIDS = [
    IntegerGrid(1, "mid_rise"),
    IntegerGrid(3, "mid_rise"),
    IntegerGrid(4, "narrow"),
    IntegerGrid(2, "full"),
]


def steps() -> Tensor:
    random = 40 * torch.rand(5_000, generator=torch.Generator().manual_seed(0)) - 20
    whole = torch.arange(-20.0, 20.5, 0.5)
    return torch.cat([random, whole, whole + 1e-6, whole - 1e-6, torch.tensor([-0.0, 1e-30])])


def quantizer(grid: IntegerGrid, scale: float, **keys: Any) -> FakeQuantize:
    made = FakeQuantize(WeightQuantization.model_validate({"bits": grid.bits} | keys), grid)
    made.scale.data = torch.tensor(scale)
    return made


@pytest.mark.parametrize(("name", "formula"), [("half_to_even", np.rint), ("ceil", np.ceil)])
def test_a_fixed_rounding_is_numpys(name: str, formula: Any) -> None:
    u = steps()
    np.testing.assert_array_equal(ROUNDINGS[name](u.clone()).numpy(), formula(u.numpy()))


def test_stochastic_rounding_takes_only_the_two_integers_around() -> None:
    u = steps()
    for _ in range(200):
        found = ROUNDINGS["stochastic_rounding"](u.clone())
        assert bool(((found == u.floor()) | (found == u.ceil())).all())


def test_stochastic_rounding_leaves_whole_numbers_alone() -> None:
    u = torch.tensor([-127.0, -3.0, 0.0, 7.0, 127.0]).repeat_interleave(2_000_000)
    assert torch.equal(ROUNDINGS["stochastic_rounding"](u.clone()), u)


def test_stochastic_rounding_is_right_on_average() -> None:
    torch.manual_seed(1)
    u = torch.tensor([-2.75, -0.5, -0.01, 0.1, 0.5, 1.999, 6.3])
    found = ROUNDINGS["stochastic_rounding"](u.repeat(DRAWS, 1)).double()
    share = (u - u.floor()).double()
    error = (share * (1 - share) / DRAWS).sqrt()
    assert ((found.mean(0) - u.double()).abs() <= 4 * error).all()


def test_additive_noise_is_uniform_within_half_a_step() -> None:
    torch.manual_seed(2)
    noise = ROUNDINGS["additive_noise"](torch.zeros(DRAWS))
    assert noise.min() >= -0.5
    assert noise.max() < 0.5
    counts = np.histogram(noise.numpy(), bins=20, range=(-0.5, 0.5))[0]
    expected = DRAWS / 20
    assert np.square(counts - expected).sum() / expected < 45  # chi squared, 19 degrees: 1 in 1000
    assert abs(float(noise.mean())) <= 4 / np.sqrt(12 * DRAWS)


@pytest.mark.parametrize("name", RANDOM)
def test_one_seed_is_one_draw(name: str) -> None:
    u, found = steps(), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(ROUNDINGS[name](u.clone()))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_what_is_for_training_alone_gives_way_to_the_nearest_integer() -> None:
    expected = {"half_to_even": "half_to_even", "ceil": "ceil"}
    assert {name: deployed(name) for name in ROUNDINGS.names()} == expected | dict.fromkeys(
        RANDOM, "half_to_even"
    )


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_evaluation_takes_the_nearest_level(name: str, grid: IntegerGrid) -> None:
    x = 0.3 * steps()
    made, plain = quantizer(grid, 0.3, rounding=name), quantizer(grid, 0.3)
    trained = made.round_to_grid(x)
    assert not torch.equal(trained, plain.round_to_grid(x))
    assert torch.equal(made.eval().round_to_grid(x), plain.eval().round_to_grid(x))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_stochastic_rounding_stays_on_the_grid(grid: IntegerGrid) -> None:
    found = quantizer(grid, 0.25, rounding="stochastic_rounding").round_to_grid(0.25 * steps())
    levels = (torch.arange(grid.qmin, grid.qmax + 1) - grid.offset) * 0.25
    assert bool(torch.isin(found, levels).all())


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_additive_noise_has_the_gradient_of_its_own_formula(
    grid: IntegerGrid, granularity: str
) -> None:
    start = torch.tensor(0.3) if granularity == "per_tensor" else torch.tensor([[0.3], [0.7]])
    settings = WeightQuantization.model_validate({"bits": grid.bits, "rounding": "additive_noise"})
    made = FakeQuantize(settings, grid)
    made.scale.data = start.clone()
    x = (0.3 * steps())[:5_000].reshape(-1, 2).T.contiguous()
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    fake_x = x.clone().requires_grad_()
    torch.manual_seed(6)
    made.round_to_grid(fake_x).backward(g)

    torch.manual_seed(6)
    noise = torch.rand_like(x) - 0.5
    real_x, scale = x.clone().requires_grad_(), start.clone().requires_grad_()
    u = real_x / scale + grid.offset + noise
    ((torch.clamp(u, grid.qmin, grid.qmax) - grid.offset) * scale).backward(g)

    assert fake_x.grad is not None
    assert real_x.grad is not None
    assert scale.grad is not None
    sure = ((u - grid.qmin).abs() > 1e-4) & ((u - grid.qmax).abs() > 1e-4)
    torch.testing.assert_close(fake_x.grad[sure], real_x.grad[sure], rtol=1e-5, atol=1e-6)
    outside = (u < grid.qmin - 1e-4) | (u > grid.qmax + 1e-4)
    assert bool(outside.any())
    assert not fake_x.grad[outside].any()
    shared = x.numel() // scale.numel()
    expected = scale.grad / np.sqrt(shared * grid.qmax)
    torch.testing.assert_close(made.scale.grad, expected, rtol=1e-4, atol=1e-5)


def test_additive_noise_on_inputs_reaches_beyond_rounding_and_saturates() -> None:
    settings = ActivationQuantization.model_validate({"bits": 2, "rounding": "additive_noise"})
    made = FakeQuantize(settings, IntegerGrid(2, "unsigned"))
    made.scale.data = torch.tensor(0.5)
    found = made.round_to_grid(torch.tensor([-5.0, 0.6, 9.0]).repeat(2_000, 1))
    assert found.amin(0).tolist()[0] == 0.0
    assert found.amax(0).tolist()[2] == 1.5
    middle = found.detach()[:, 1]
    assert len(middle.unique()) > 1_000
    assert float((middle - 0.6).abs().max()) <= 0.25 + 1e-6
