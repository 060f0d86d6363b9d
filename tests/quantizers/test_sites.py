"""Quantizers at sites: what they make of a call, of one value or of several that share a scale."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qtool.numerics.grid import IntegerGrid
from qtool.quantizers.sites import SharedSite, SiteQuantizer, settle_what_waits
from qtool.settings.tensors import ActivationQuantization

BLEND = {"range": "absmax", "blend": {"name": "linear", "start": 0.0, "stop": 1.0}}
FOLLOW = {"name": "ema_min_max", "decay": 0.9, "every": 1}


def settings(**keys: Any) -> ActivationQuantization:
    return ActivationQuantization.model_validate({"bits": 4} | keys)


def at(
    stand: SiteQuantizer | SharedSite,
    function: Any,
    args: tuple[Tensor, ...],
    kwargs: dict[str, object],
) -> Tensor:
    """Return the tensor that stands for the result of a call."""
    found = stand.at(function, args, kwargs)
    assert isinstance(found, Tensor)
    return found


def values(*shape: int, seed: int = 5) -> Tensor:
    return 4 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Return what numpy's formula makes of x, apart from qtool's own."""
    q = torch.round(x.double() / scale.double())
    return (q.clamp(low, high) * scale.double()).float()


@pytest.mark.parametrize("range_", ["learned", "absmax", "mse", "ppq", "pact", FOLLOW])
@pytest.mark.parametrize("grid", ["auto", "full"])
def test_a_clip_from_zero_is_the_roundings(range_: Any, grid: str) -> None:
    made = SiteQuantizer(settings(range=range_, grid=grid), "clip", "free", top=6.0).train()
    x = values(8, 40)
    at(made, F.relu6, (x,), {})
    assert float(made.observed.max() if made.follows else made.used_scale) <= 6.0
    given = x.clone().requires_grad_()
    y = at(made, F.relu6, (given,), {"inplace": True})
    assert isinstance(y, Tensor)
    grid_, scale = made.known_grid, made.scale.detach()
    assert torch.equal(y, rounded(x.clamp(0, 6), scale, 0, grid_.qmax))
    y.sum().backward()
    end = min(grid_.qmax * scale, 6.0)
    assert given.grad is not None
    assert given.grad[(x < 0) | (x > end + scale)].abs().max() == 0
    assert given.grad[(x > 0) & (x < end - scale)].min() == 1


@pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
@pytest.mark.parametrize(
    "keys", [{}, {"scale_gradient": "chain_rule"}, {"range": "pact"}, {"grid": "full"}], ids=str
)
def test_a_scale_learns_by_what_lies_below_a_top_that_it_reaches(
    keys: dict[str, Any], share: float
) -> None:
    made = SiteQuantizer(settings(**keys), "clip", top=6.0).train()
    made(values(9, 9).clamp(0, 6))
    made.scale.data.fill_(share)
    reached = share * made.known_grid.qmax >= 6
    x, end = values(64, 64).flatten(), min(6, share * made.known_grid.qmax)
    weights = values(*x.shape, seed=7)

    def gradient(made_of: Tensor, weights: Tensor) -> float:
        made.scale.grad = None
        (made_of * weights).sum().backward()
        assert made.scale.grad is not None
        return float(made.scale.grad)

    x, weights = (t[(x - 6).abs() > share] for t in (x, weights))  # where both say the same
    below = x < end if reached else x > -torch.inf
    clipped = torch.where(below, x, 0.0).clamp(0, 6)  # 0 teaches nothing
    found = gradient(made(x, rectify=True, top=6.0), weights)
    assert found == pytest.approx(gradient(made(clipped), weights), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("clipped", [False, True])
def test_all_ways_learn_alike_at_a_clip(clipped: bool) -> None:
    def gradients(x: Tensor, made: SiteQuantizer) -> tuple[Tensor, Tensor]:
        made.scale.grad, given = None, x.clone().requires_grad_()
        y = made(given, rectify=True, top=3.0)
        (y * torch.linspace(0, 1, x.numel(), dtype=x.dtype).reshape(x.shape)).sum().backward()
        assert given.grad is not None
        assert made.scale.grad is not None
        return given.grad, made.scale.grad

    made = SiteQuantizer(settings(), "clip", top=3.0).train()
    made(values(9, 9).clamp(0, 3))
    made.scale.data.fill_(0.37 if clipped else 0.1)
    x = values(32, 33)
    fast = gradients(x, made)
    compiled = torch.compile(
        lambda x: made(x, rectify=True, top=3.0), backend="aot_eager", fullgraph=True
    )
    made.ahead = True
    y, scale = x.clone().requires_grad_(), made.scale
    scale.grad = None
    (compiled(y) * torch.linspace(0, 1, x.numel()).reshape(x.shape)).sum().backward()
    assert y.grad is not None
    assert torch.equal(y.grad, fast[0])
    torch.testing.assert_close(scale.grad, fast[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("largest", [0.5, 3.0, 40.0, 200.0])
@pytest.mark.parametrize("range_", ["learned", "absmax", "mse", "pact", FOLLOW])
def test_codes_below_hardswish_are_hardsigmoids(range_: Any, largest: float) -> None:
    made = SiteQuantizer(settings(range=range_), "conv2d", "hardswish")
    x = torch.linspace(-9, largest, 999)
    y = made(x)
    k = min(max(round(255 * 3 / (largest + 3)), 8), 127)
    assert made.known_grid == IntegerGrid(8, "asymmetric")
    assert float(made.zero_point) == k
    assert float(made.scale) == torch.tensor(3 / k).float()
    codes = made.on_grid.codes(y)
    assert not made.learns
    torch.testing.assert_close(F.hardsigmoid(y), codes.clamp_max(2 * k) / (2 * k))


def test_a_unit_grid_is_ready_at_once_and_stays() -> None:
    made = SiteQuantizer(settings(range="learned"), "hardsigmoid", "unit").train()
    assert made.ready
    x = values(5, 7)
    y = at(made, F.hardsigmoid, (x,), {"inplace": True})
    assert isinstance(y, Tensor)
    torch.testing.assert_close(y, torch.round(F.hardsigmoid(x) / torch.tensor(1 / 255)) / 255)
    made.observer.watching = True
    assert torch.equal(made(x), x)
    assert not made.observer.watched
    assert not list(made.parameters())


def test_silu_multiplies_by_a_rounded_sigmoid() -> None:
    made = SiteQuantizer(settings(bits=8, range="absmax"), "silu")
    x = values(5, 70)
    at(made, F.silu, (x,), {})
    gate = rounded(torch.sigmoid(x), torch.tensor(1 / 255), 0, 255)
    y = at(made, F.silu, (x,), {"inplace": True})
    grid = made.known_grid
    expected = rounded(x * gate, made.scale, grid.qmin, grid.qmax)
    assert (y - expected).abs().max() <= made.scale * 1.001
    assert (y != expected).float().mean() < 0.01  # a product at a tie


@pytest.mark.parametrize("range_", ["learned", "absmax", "mse", "min_max", FOLLOW])
def test_a_shared_scale_is_set_from_all_values_of_the_group(range_: Any) -> None:
    made = SiteQuantizer(settings(bits=8, range=range_), "relu", members=("a", "b", "c"))
    others = [SharedSite(made, "relu", "b"), SharedSite(made, "add", "c")]
    parts = [values(4, 9, seed=n) * (n + 1) for n in range(3)]
    operands = [(parts[0],), (parts[1],), (parts[2], torch.zeros(()))]
    seen = [parts[0].relu(), parts[1].relu(), parts[2]]
    for stand, given, value in zip([made, *others], operands, seen, strict=True):
        assert not made.ready
        y = at(stand, torch.add if len(given) == 2 else F.relu, given, {})
        assert torch.equal(y, value) or stand is others[-1]
    alone = SiteQuantizer(settings(bits=8, range=range_))
    alone(torch.cat(seen))
    assert made.ready
    assert made.known_grid == alone.known_grid
    assert torch.equal(made.scale, alone.scale)
    assert not list(others[0].parameters()) + list(others[0].buffers())
    grid = made.known_grid
    z, scale = float(made.zero_point), made.scale.detach()
    expected = rounded(parts[1].relu(), scale, int(grid.qmin - z), int(grid.qmax - z))
    assert torch.equal(at(others[0], F.relu, (parts[1],), {}), expected)


def test_a_shared_range_follows_all_values_of_a_step() -> None:
    made = SiteQuantizer(settings(bits=8, range=FOLLOW), "relu", members=("a", "b")).train()
    other = SharedSite(made, "add", "b")
    ones = torch.ones(3)
    at(made, F.relu, (2 * ones,), {})
    at(other, torch.add, (ones, -2 * ones), {})
    assert made.observed.tolist() == [-1, 2]
    for _ in range(2):
        made.observer.begin_step(made.observed)
        at(made, F.relu, (ones * 4,), {})
        at(other, torch.add, (ones, ones * 9), {})
    # of each step, 0.1 of its extremes 4 and 10
    assert made.observed.tolist() == pytest.approx([0.19 * 4 - 0.81, 0.19 * 10 + 0.81 * 2])


def test_a_group_of_which_a_pass_shows_some_members_is_set_from_those() -> None:
    made = SiteQuantizer(settings(bits=8, range="absmax"), "relu", members=("a", "b"))
    at(made, F.relu, (torch.full((3,), 5.1),), {})
    assert not made.ready
    settle_what_waits(made)
    assert float(made.scale) == pytest.approx(0.02)


@pytest.mark.parametrize("keys", [BLEND, {"rounding": "additive_noise"}], ids=str)
def test_what_is_blended_or_noisy_is_clipped_before(keys: dict[str, Any]) -> None:
    made = SiteQuantizer(settings(**keys), "clip", top=6.0).train()
    made(values(9, 9).clamp(0, 6))
    y = at(made, F.relu6, (values(9, 9),), {}).detach()
    assert 0 <= float(y.min()) <= float(y.max()) <= 6.0 + float(made.used_scale)


def test_functions_in_place_leave_what_autograd_keeps() -> None:
    x = values(3, 4).requires_grad_()
    made = SiteQuantizer(settings(bits=8, range="learned"), "add").train()
    made(x.detach())
    for function, args in [
        (Tensor.add_, (x.exp(), x)),
        (Tensor.__iadd__, (x.exp(), x)),
        (Tensor.mul_, (x.exp(), x)),
        (Tensor.__isub__, (x.exp(), x)),
        (Tensor.sub_, (x.exp(), x)),
    ]:
        made.function = function.__name__.strip("_").removeprefix("i")
        kept = args[0].detach().clone()
        at(made, function, args, {}).sum().backward()
        assert torch.equal(args[0], kept)
    for name, function in [("hardswish", F.hardswish), ("silu", F.silu), ("clip", F.hardtanh)]:
        stand = SiteQuantizer(settings(bits=8), name).train()
        for _ in range(2):
            given = x.exp()
            kept = given.detach().clone()
            at(stand, function, (given,), {"inplace": True}).sum().backward()
            assert torch.equal(given, kept)


def test_no_level_of_a_clips_grid_lies_beyond_its_end() -> None:
    """A range that starts from the mean would leave half of the levels unused."""
    made = SiteQuantizer(settings(bits=8, grid="unsigned"), "clip", "rectified", top=6.0)
    made.at(F.relu6, (values(64, 64),), {})
    assert float(made.used_scale) == pytest.approx(6 / 255, rel=1e-6)
