"""The rounding on a CPU, in blocks and with fast forms, against formulas without autograd."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.fast_estimators import FAST
from qtool.numerics.roundings import ROUNDINGS
from qtool.numerics.sign_family import SIGN_FAMILY
from qtool.numerics.steps import widen
from qtool.quantizers import cpu_backward
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.rounding_function import RoundToGrid
from qtool.quantizers.scale_gradient import Backward
from qtool.settings.tensors import WeightQuantization

NARROW, UNSIGNED, MID_RISE, ONE_BIT = (-7.0, 7.0, 0), (0.0, 15.0, 0), (-3.0, 4.0, 0.5), (0, 1, 0.5)
SHAPES = [(4, 5, 6, 7), (300,), (2, 40), (), (0, 3)]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every second": lambda t: torch.stack([t, t], -1).flatten(-2)[..., ::2],
    "expanded": lambda t: t[:, :1].expand(t.shape),
}


def reference(
    x: Tensor, g: Tensor, scale: Tensor, grid: Any, estimator: Any, rule: str, factor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_hat and the gradients of x and the scale, the sums in float64."""
    low, high, offset = grid
    u = widen(x) / scale + offset
    x_hat = ((torch.round(u).clamp(low, high) - offset) * scale).to(x.dtype)
    g_x = estimator(widen(g), u, low, high)
    inner = g_x if rule == "chain_rule" else widen(g) * ((u >= low) & (u <= high))
    learnt = g.double() * x_hat.double() - inner.double() * x.double()
    if rule == "clip":
        learnt = (g.double() - inner.double()) * x_hat.double()
    g_scale = learnt.sum_to_size(scale.shape) / scale.double() * factor
    return x_hat, g_x, g_scale


def check(
    x: Tensor, g: Tensor, scale: Tensor, grid: Any, estimator: Any, rule: Any = "lsq"
) -> None:
    exact = x.dtype == torch.float64
    scale = scale.double() if exact else scale.clone()
    x, scale = x.detach().requires_grad_(), scale.requires_grad_()
    how = Backward(estimator, rule, 0.25)
    found: Any = RoundToGrid.apply(x, scale, None, *grid, ROUNDINGS["half_to_even"], how)
    found.backward(g)
    x_hat, g_x, g_scale = reference(x.detach(), g, scale.detach(), grid, estimator, rule, 0.25)
    assert x.grad is not None
    assert scale.grad is not None
    assert torch.equal(found.detach(), x_hat)
    assert found.dtype == x.grad.dtype == x.dtype
    largest = float(g_x.abs().max()) if g_x.numel() else 0.0
    close = 1e-12 if exact else 1e-6 if x.dtype == torch.float32 else 8e-3
    torch.testing.assert_close(widen(x.grad), g_x, rtol=0, atol=close * largest)
    norm = float(g.double().norm()) * 0.25 + 1e-12
    np.testing.assert_allclose(scale.grad, g_scale, rtol=0, atol=(1e-12 if exact else 1e-3) * norm)


EACH = [
    (name, rule, grid)
    for name in ESTIMATORS.names()
    for rule in ("lsq", "chain_rule", "clip")
    for grid in (NARROW, UNSIGNED, MID_RISE, ONE_BIT)
    if grid is ONE_BIT or name not in SIGN_FAMILY
]


@pytest.fixture(params=["one block", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small blocks":
        monkeypatch.setattr(cpu_backward, "BLOCK", 64)
        monkeypatch.setattr(cpu_backward, "FEW", 0)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize(("name", "rule", "grid"), EACH)
def test_every_estimator_in_and_between_blocks(name: str, rule: str, grid: Any) -> None:
    ties = torch.arange(grid[0] - 2, grid[1] + 2.5, 0.5) * 0.25
    for dtype in (torch.float32, torch.float64):
        x = torch.cat([randn(300) * grid[1] / 4, ties]).to(dtype)
        g = randn(len(x), seed=1).to(dtype)
        check(x, g, torch.tensor(0.25), grid, ESTIMATORS[name], rule)
        rows, scales = torch.stack([x, x / 2]), torch.tensor([[0.25], [0.3]])
        g = randn(*rows.shape, seed=1).to(dtype)
        check(rows, g, scales, grid, ESTIMATORS[name], rule)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["clipped_relu", "identity", "triangular", "swish_sign"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape(shape: Any, name: str, dtype: torch.dtype) -> None:
    x, g = (randn(*shape, seed=seed).to(dtype) for seed in (0, 1))
    grid = ONE_BIT if name in SIGN_FAMILY else NARROW
    check(x, g, torch.tensor(0.2), grid, ESTIMATORS[name])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", ["straight_through", "relu", "sinusoidal", "swish_sign"])
@pytest.mark.parametrize("of_g", LAYOUTS)
@pytest.mark.parametrize("of_x", LAYOUTS)
def test_every_pair_of_layouts(of_x: str, of_g: str, name: str, per_channel: bool) -> None:
    x, g = LAYOUTS[of_x](randn(4, 5, 6, 7)), LAYOUTS[of_g](randn(4, 5, 6, 7, seed=1))
    scale = torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(4, 1, 1, 1)
    grid = ONE_BIT if name in SIGN_FAMILY else NARROW
    check(x, g, scale if per_channel else scale[1, 0, 0, 0], grid, ESTIMATORS[name])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", ["straight_through", "hyperbolic_tangent"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_output_and_gradient_keep_the_memory_format(name: str, per_channel: bool) -> None:
    x = LAYOUTS["channels_last"](randn(4, 5, 6, 7)).requires_grad_()
    scale = torch.full((4, 1, 1, 1) if per_channel else (), 0.3)
    how = Backward(ESTIMATORS[name], "lsq", 1.0)
    found: Any = RoundToGrid.apply(x, scale, None, *NARROW, ROUNDINGS["half_to_even"], how)
    seen: list[Tensor] = []
    x.register_hook(seen.append)
    found.backward(torch.randn(4, 5, 6, 7))
    assert found.stride() == x.stride() == seen[0].stride()


@pytest.mark.parametrize("scale", [0.3, 1 / 3, 0.07, 1e-3, 17.3])
@pytest.mark.parametrize("name", ["straight_through", "clipped_relu", "relu"])
@pytest.mark.parametrize("grid", [NARROW, UNSIGNED], ids=str)
def test_masks_on_x_are_those_on_its_quotient(
    grid: Any, name: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_backward, "FEW", 0)
    centre = torch.tensor([bound * scale for bound in grid[:2]])
    x = [centre]
    for end in (-torch.inf, torch.inf):
        value = centre
        for _ in range(20):
            value = torch.nextafter(value, torch.tensor(end))
            x.append(value)
    values = torch.cat(x)
    check(values, torch.ones_like(values), torch.tensor(scale), grid, ESTIMATORS[name])


def test_bounds_that_are_tensors_become_numbers() -> None:
    x = randn(500).requires_grad_()
    found = []
    for low, high in ((-5.0, 10.0), (torch.tensor(-5.0), torch.tensor(10.0))):
        how = Backward(ESTIMATORS["sinusoidal"], "lsq", 1.0)
        scale, shift = torch.tensor(0.1).requires_grad_(), torch.zeros(()).requires_grad_()
        x_hat: Any = RoundToGrid.apply(
            x, scale, shift, low, high, 0.0, ROUNDINGS["half_to_even"], how
        )
        found.append(torch.autograd.grad(x_hat.square().sum(), [x, scale, shift]))
    for plain, tensor in zip(*found, strict=True):
        assert torch.equal(plain, tensor)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("name", [n for n in ESTIMATORS.names() if n not in SIGN_FAMILY])
def test_a_shift_learns_from_what_saturates(name: str) -> None:
    x, g = randn(400), randn(400, seed=1)
    scale, shift = torch.tensor(0.1).requires_grad_(), torch.zeros(()).requires_grad_()
    how = Backward(ESTIMATORS[name], "lsq", 0.5)
    x_hat: Any = RoundToGrid.apply(x, scale, shift, -5.0, 10.0, 0.0, ROUNDINGS["half_to_even"], how)
    x_hat.backward(g)
    u = x / 0.1
    outside = g.double() * ((u < -5) | (u > 10))
    level = torch.where(u < -5, 0.0, torch.where(u > 10, 15.0, torch.round(u) - u))
    np.testing.assert_allclose(shift.grad, 0.5 * outside.sum(), atol=1e-4)
    np.testing.assert_allclose(scale.grad, 0.5 * (g.double() * level).sum(), atol=1e-3)


@pytest.mark.parametrize("rounding", ["ceil", "stochastic_rounding"])
def test_other_roundings_have_the_gradient_of_their_own_output(rounding: str) -> None:
    x, g = randn(400).requires_grad_(), randn(400, seed=1)
    scale = torch.tensor(0.2).requires_grad_()
    how = Backward(ESTIMATORS["clipped_relu"], "lsq", 1.0)
    x_hat: Any = RoundToGrid.apply(x, scale, None, 0.0, 7.0, 0.0, ROUNDINGS[rounding], how)
    x_hat.backward(g)
    u = x.detach() / 0.2
    inside = ((u >= 0) & (u <= 7)).double()
    expected = (g * (x_hat.detach() - inside * x.detach())).sum() / 0.2
    np.testing.assert_allclose(scale.grad, expected, rtol=1e-4)


def test_a_user_estimator_sees_the_whole_tensor_in_its_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu_backward, "BLOCK", 8)
    seen = []

    def mine(grad: Tensor, u: Tensor, low: float, high: float) -> Tensor:
        seen.append(u.shape)
        return grad / grad.norm()

    check(randn(4, 5, 6, 7), randn(4, 5, 6, 7, seed=1), torch.tensor(0.1), NARROW, mine)
    assert (4, 5, 6, 7) in seen


@pytest.mark.parametrize("name", ["identity", "straight_through", "element_wise_gradient_scaling"])
def test_the_gradient_that_comes_in_is_left_alone(name: str) -> None:
    x, g = randn(50).requires_grad_(), randn(50, seed=1)
    before = g.clone()
    how = Backward(ESTIMATORS[name], "lsq", 1.0)
    scale = torch.tensor(0.2).requires_grad_()
    x_hat: Any = RoundToGrid.apply(x, scale, None, *NARROW, ROUNDINGS["half_to_even"], how)
    kept = x.detach().clone(), x_hat.detach().clone()
    x_hat.backward(g)
    assert torch.equal(g, before)
    assert torch.equal(x.detach(), kept[0])
    assert torch.equal(x_hat.detach(), kept[1])


def test_nothing_but_the_input_the_scale_and_the_output_is_kept() -> None:
    kept: list[Tensor] = []
    x, scale = randn(1000).requires_grad_(), torch.tensor(0.2).requires_grad_()
    how = Backward(ESTIMATORS["sinusoidal"], "lsq", 1.0)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        RoundToGrid.apply(x, scale, None, *NARROW, ROUNDINGS["half_to_even"], how)
    assert [t.numel() for t in kept] == [1000, 1, 1000]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_moving_parameter_reaches_the_fast_form(dtype: torch.dtype) -> None:
    moving = {"name": "linear", "start": 1.0, "stop": 4.0}
    chosen = {"name": "hyperbolic_tangent", "sharpness": moving}
    settings = WeightQuantization.model_validate({"bits": 4, "estimator": chosen})
    made = FakeQuantize(settings, settings.integer_grid)
    assert "hyperbolic_tangent" in FAST
    x = randn(200).to(dtype)
    for progress, sharpness in ((0.0, 1.0), (0.5, 2.5)):
        made.set_progress(progress)
        leaf = x.clone().requires_grad_()
        made.round_to_grid(leaf).sum().backward()
        plain = partial(ESTIMATORS["hyperbolic_tangent"], sharpness=sharpness)
        expected = plain(torch.ones(200), x.float() / made.scale.detach(), -7.0, 7.0)
        assert leaf.grad is not None
        close = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(leaf.grad.float(), expected, rtol=close, atol=close)
