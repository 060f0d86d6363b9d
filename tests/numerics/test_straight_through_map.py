"""alpha and M of every estimator, against the paper's numbers, numeric integrals and the theory."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qtool.errors import RecipeError
from qtool.numerics.closed_forms import CLOSED_FORMS, SIGN_FORMS
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.sign_family import SIGN_FAMILY
from qtool.numerics.straight_through_map import numeric_map, straight_through_map

COMES_BACK = "never come back"
GRIDS = [(-3, 3), (-4, 3), (0, 15), (0, 1), (-127, 127)]
SETTINGS: list[tuple[str, dict[str, float]]] = [
    *((name, {}) for name in (*CLOSED_FORMS, *SIGN_FORMS)),
    *(("hyperbolic_tangent", {"sharpness": k}) for k in (1e-6, 0.1, 1.2, 2.0, 6.0, 20.0, 50.0)),
    *(("stacked_sigmoid", {"sharpness": a}) for a in (0.5, 10.0)),
    *(("sinusoidal", {"amplitude": a}) for a in (0.0, 0.8, -0.8, 0.999)),
    *(("triangular", {"height": h}) for h in (0.0, 1e-9, 0.9, 0.999)),
    *(("stable_qat", {"amplitude": a}) for a in (0.0, 0.1, 0.225)),
    *(("position_based", {"slope": b, "epsilon": e}) for b, e in ((150.0, 1e-3), (4.0, 1e-5))),
    *(("tanh", {"sharpness": k}) for k in (0.1, 5.0)),
    *(("rectified", {"power": o}) for o in (1.0, 2.0)),
]
IN_CLASS = [
    (name, params)
    for name, params in SETTINGS
    if name in CLOSED_FORMS or name in ("tanh", "sigmoid")
]
UNIT_SUM = [  # those whose derivative has the mean 1 over a bin
    setting
    for setting in SETTINGS
    if setting[0] in ("hyperbolic_tangent", "stacked_sigmoid", "sinusoidal", "triangular")
]

each_setting = pytest.mark.parametrize(("name", "params"), SETTINGS)
each_in_class = pytest.mark.parametrize(("name", "params"), IN_CLASS)
each_of_bins = pytest.mark.parametrize(
    ("name", "params"), [s for s in SETTINGS if s[0] in CLOSED_FORMS]
)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def weights(low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Return 1e5 values over and beyond a grid, thresholds and what lies beside them included."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.rand(100_000, generator=generator, dtype=torch.float64)
    spread = (low - 2 + (high - low + 4) * spread).to(dtype)
    thresholds = torch.arange(low - 1.5, high + 2, 1.0, dtype=dtype)
    above, below = [thresholds], [thresholds]
    for _ in range(20):
        above.append(torch.nextafter(above[-1], thresholds + 1))
        below.append(torch.nextafter(below[-1], thresholds - 1))
    return torch.cat([spread, *above, *below])


@pytest.mark.parametrize(
    ("w", "slope", "mapped"),
    [
        (0.05, 2.00495686, 0.01058122),
        (0.1, 1.49737909, 0.02355791),
        (0.3, 0.17302031, 0.22463667),
        (1 / 3, 0.11375858, 1 / 3),
        (0.4, 0.26121267, 0.51372513),
        (-0.25, 0.31970726, -0.12669823),
    ],
)
def test_the_hyperbolic_tangent_has_the_papers_slope_and_map(w, slope, mapped):
    # 2 bits, k = 6.5, mx = 1: the step is 2/3, and w = 0 is a threshold of the mid_rise grid
    step, u = 2 / 3, w / (2 / 3) + 0.5
    estimator = ESTIMATORS.build("hyperbolic_tangent", sharpness=6.5 / 3)
    found = straight_through_map("hyperbolic_tangent", -1, 2, sharpness=6.5 / 3).map(vector(u))

    assert estimator(vector(1), vector(u), -1.0, 2.0).item() == pytest.approx(slope, abs=1e-7)
    assert step * (found.item() - 0.5) == pytest.approx(mapped, abs=1e-7)


@pytest.mark.parametrize(
    ("bits", "k", "alpha", "upper", "lower", "ratio"),
    [
        (1, 2, 0.530428, 2.0746, 0.1466, 14.2),
        (2, 6.5, 0.454376, 2.2243, 0.1138, 19.6),
        (4, 18, 0.878354, 1.4394, 0.4391, 3.28),
    ],
)
def test_the_hyperbolic_tangent_has_the_papers_table(bits, k, alpha, upper, lower, ratio):
    found = straight_through_map("hyperbolic_tangent", sharpness=k / (2**bits - 1))

    assert found.alpha == pytest.approx(alpha, abs=5e-7)
    assert (found.upper, found.lower) == pytest.approx((upper, lower), abs=5e-5)
    assert found.upper / found.lower == pytest.approx(ratio, abs=0.05)


def test_the_other_estimators_have_the_papers_numbers():
    sinusoid = straight_through_map("sinusoidal", amplitude=0.8)
    fourier = straight_through_map("stable_qat", amplitude=0.21)

    assert sinusoid.alpha == pytest.approx(0.6, abs=1e-12)
    # the paper counts from the threshold here, and from the level there
    moved = sinusoid.map(vector(0.6, 0.75, 0.9)) - 0.5
    assert moved.tolist() == pytest.approx([0.03434119, 0.10241638, 0.25406834], abs=1e-7)
    assert fourier.alpha == pytest.approx(0.11346997, abs=1e-8)
    moved = fourier.map(vector(0.1, 0.25, -0.1))
    assert moved.tolist() == pytest.approx([0.27166531, 0.43268310, -0.27166531], abs=1e-7)


@pytest.mark.parametrize("bounds", [(), (-3, 3), (0, 1)])
@each_setting
def test_the_closed_form_is_the_numeric_integral(name, params, bounds):
    if name in SIGN_FAMILY and bounds == (-3, 3):
        bounds = (0, 1)
    closed, numeric = (
        make(name, *bounds, **params) for make in (straight_through_map, numeric_map)
    )
    u = torch.linspace(-2.3, 3.3, 7001, dtype=torch.float64)
    if name == "approx_sign":  # M is infinite at the levels
        u = torch.linspace(0.02, 0.98, 999, dtype=torch.float64)

    assert numeric.alpha == pytest.approx(closed.alpha, rel=1e-6)
    torch.testing.assert_close(numeric.map(u), closed.map(u), rtol=1e-6, atol=1e-6)
    assert (numeric.lower, numeric.upper, numeric.reason) == (
        closed.lower,
        closed.upper,
        closed.reason,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("low", "high"), GRIDS)
@each_setting
def test_the_map_keeps_every_quantized_value(name, params, low, high, dtype):
    if name in SIGN_FAMILY and (low, high) != (0, 1):
        return
    u = weights(low, high, dtype)
    levels = torch.round(u).clamp(low, high)
    moved = straight_through_map(name, low, high, **params).map(u)

    assert (moved.dtype, moved.shape) == (u.dtype, u.shape)
    assert moved.isfinite().all()
    assert torch.equal(torch.round(moved).clamp(low, high), levels)
    if name not in SIGN_FAMILY:
        moved = straight_through_map(name, **params).map(u)
        assert torch.equal(torch.round(moved), torch.round(u))


@each_of_bins
def test_the_map_repeats_in_every_bin_increases_and_keeps_thresholds_and_levels(name, params):
    found = straight_through_map(name, **params)
    u = torch.linspace(-2, 2, 4001, dtype=torch.float64)
    fixed = torch.arange(-7, 8, dtype=torch.float64) / 2

    torch.testing.assert_close(found.map(u + 1), found.map(u) + 1, rtol=0, atol=1e-9)
    assert (found.map(u).diff() > (0 if found.alpha > 1e-6 else -1e-12)).all()
    torch.testing.assert_close(found.map(fixed), fixed, rtol=0, atol=1e-12)
    assert torch.equal(found.map(fixed[::2]), fixed[::2])


def test_the_map_takes_any_shape_and_float_type_and_changes_nothing():
    found = straight_through_map("hyperbolic_tangent", -3, 3, sharpness=6.0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        u = weights(-3, 3, dtype)[:99_990].reshape(3, 33, -1).requires_grad_()
        before = u.detach().clone()
        moved = found.map(u)
        assert (moved.dtype, moved.shape, moved.requires_grad) == (dtype, u.shape, False)
        assert torch.equal(u, before)
        assert torch.equal(torch.round(moved), torch.round(u))
    assert found.map(torch.tensor(0.5)).shape == ()
    assert found.map(torch.empty(0, 4)).shape == (0, 4)


@each_in_class
def test_the_slope_of_the_map_is_alpha_over_the_derivative(name, params):
    found = straight_through_map(name, **params)
    u = torch.linspace(0.03, 0.97, 48, dtype=torch.float64)
    h = 1e-6
    slope = (found.map(u + h) - found.map(u - h)) / (2 * h)
    derivative = ESTIMATORS.build(name, **params)(torch.ones_like(u), u, -5.0, 5.0)

    torch.testing.assert_close(slope, found.alpha / derivative, rtol=1e-4, atol=1e-6)


@each_in_class
def test_an_estimator_in_the_class_is_positive_and_bounded(name, params):
    found = straight_through_map(name, **params)

    assert found.in_class
    assert found.reason == ""
    assert 0 < found.lower <= found.upper < math.inf
    assert found.alpha > 0


@pytest.mark.parametrize(("name", "params"), UNIT_SUM)
def test_alpha_is_the_harmonic_mean_and_at_most_the_mean(name, params):
    found = straight_through_map(name, **params)

    assert found.alpha <= 1 + 1e-12
    assert found.lower - 1e-9 <= found.alpha <= found.upper + 1e-9


def test_alpha_falls_as_the_estimator_grows_sharper():
    for name, key, values in [
        ("hyperbolic_tangent", "sharpness", np.geomspace(0.05, 100, 30)),
        ("stacked_sigmoid", "sharpness", np.geomspace(0.1, 100, 30)),
        ("sinusoidal", "amplitude", np.linspace(0, 0.99, 30)),
        ("triangular", "height", np.linspace(0, 0.99, 30)),
        ("stable_qat", "amplitude", np.linspace(0, 0.225, 30)),
    ]:
        alphas = [straight_through_map(name, **{key: float(value)}).alpha for value in values]
        assert alphas == sorted(alphas, reverse=True)
        assert alphas[0] == pytest.approx(1, abs=1e-2)


def test_a_sharpness_beyond_all_reason_neither_overflows_nor_moves_a_code():
    found = straight_through_map("hyperbolic_tangent", sharpness=300.0)
    u = weights(-3, 3, torch.float64)

    assert found.alpha < 1e-200
    assert torch.equal(torch.round(found.map(u)), torch.round(u))
    assert not straight_through_map("hyperbolic_tangent", sharpness=1e4).in_class


@pytest.mark.parametrize(
    ("name", "params", "bounds", "why"),
    [
        ("element_wise_gradient_scaling", {}, (), "sign of the gradient"),
        ("element_wise_gradient_scaling", {}, (-3, 3), "sign of the gradient"),
        ("trust", {"threshold": 0.3}, (), "0 in places"),
        ("swish_sign", {}, (), "negative"),
        ("swish_sign", {"beta": 0.3}, (0, 1), "negative"),
        ("position_based", {"epsilon": 0.0}, (), "0 in places"),
        ("position_based", {"epsilon": 0.0}, (0, 1), "0 in places"),
        ("reverse_exponential", {}, (), "bin to bin"),
        ("reverse_exponential", {}, (-3, 3), "bin to bin"),
        ("reverse_exponential", {}, (0, 1), "bin to bin"),
    ],
)
def test_an_estimator_without_a_map_says_why(name, params, bounds, why):
    found = straight_through_map(name, *bounds, **params)

    assert not found.in_class
    assert why in found.reason
    assert math.isnan(found.alpha)
    with pytest.raises(ValueError, match=why):
        found.map(torch.zeros(3))


@pytest.mark.parametrize(
    ("name", "bounds", "why"),
    [
        ("straight_through", (-3, 3), "0 outside the grid"),
        ("hyperbolic_tangent", (-3, 3), "0 outside the grid"),
        ("clipped_relu", (0, 15), "0 outside the grid"),
        ("trust", (-3, 3), "0 outside the grid"),
        ("relu", (0, 15), "0 below the grid"),
        ("log_tailed_relu", (0, 15), "0 below the grid"),
        ("hard_tanh", (), "0 away from the threshold"),
        ("approx_sign", (), "0 away from the threshold"),
        ("rectified", (0, 1), "0 away from the threshold"),
    ],
)
def test_a_derivative_of_0_outside_lies_outside_the_class_but_has_a_map(name, bounds, why):
    found = straight_through_map(name, *bounds)

    assert not found.in_class
    assert why in found.reason
    assert COMES_BACK in found.reason
    assert found.alpha > 0
    assert found.map(torch.tensor([0.25])).isfinite().all()


def test_no_derivative_of_0_outside_keeps_an_estimator_in_the_class():
    for name in ("identity", "magnitude_aware"):
        for bounds in [(), *GRIDS]:
            assert straight_through_map(name, *bounds).in_class


def test_the_map_leaves_what_lies_outside_the_grid():
    u = vector(-9.3, -3.2, 3.3, 7.9)

    assert torch.equal(straight_through_map("sinusoidal", -3, 3).map(u), u)
    assert not torch.equal(straight_through_map("sinusoidal").map(u), u)


def test_the_map_of_magnitude_aware_grows_with_the_square_outside():
    found = straight_through_map("magnitude_aware", -4, 3)

    # middle -1/2, half width 7/2: at u = 6.5, d = 7
    assert found.map(vector(2.2, 6.5, -7.5)).tolist() == pytest.approx(
        [2.2, -0.5 + (49 + 12.25) / 7, -0.5 - (49 + 12.25) / 7], abs=1e-12
    )
    assert found.lower == pytest.approx(1 / 3)


def test_the_sign_family_counts_from_its_threshold_at_scale_1():
    for name, params, integral in [
        ("tanh", {"sharpness": 2.0}, lambda v: (4 * v + np.sinh(4 * v)) / 16),
        ("sigmoid", {}, lambda v: 2 * v + 2 * np.sinh(v)),
        ("hard_tanh", {}, lambda v: v),
        ("approx_sign", {}, lambda v: -np.sign(v) * np.log(1 - abs(v)) / 2),
    ]:
        found = straight_through_map(name, 0, 1, **params)
        u = vector(-0.1, 0.1, 0.5, 0.8) if name in ("tanh", "sigmoid") else vector(0.1, 0.5, 0.8)
        expected = 0.5 + 0.5 * integral(2 * u.numpy() - 1)
        assert found.alpha == 1
        np.testing.assert_allclose(found.map(u).numpy(), expected, rtol=1e-12)


def test_rectified_has_the_root_inside_its_reach_and_stays_put_beyond():
    found = straight_through_map("rectified", power=3.0)
    v = vector(0.05, 0.1, 0.7, 1.5, 1.6)
    e = 5 / 3
    expected = [
        0.05 * 0.1 ** (2 / 3),
        0.1**e,
        *(0.1**e + 1.8 * (x**e - 0.1**e) for x in (0.7, 1.5)),
    ]

    for sign in (1, -1):
        found_v = 2 * found.map((1 + sign * v) / 2) - 1
        assert found_v.tolist() == pytest.approx([sign * x for x in [*expected, 1.6]], abs=1e-12)


def test_bounds_are_judged_over_a_stretch_beyond_the_grid():
    inner, bounded = (straight_through_map("hyperbolic_tangent", *b) for b in ((), (-3, 3)))

    assert inner.upper == bounded.upper
    assert (inner.lower > 0.1, bounded.lower) == (True, 0)


@pytest.mark.parametrize("bounds", [(0,), (3, -3), (2, 2), (0.5, 3.0)])
def test_bounds_that_are_no_grid_are_refused(bounds):
    with pytest.raises(ValueError, match=r"bounds|integers"):
        straight_through_map("identity", *bounds)


def test_the_sign_family_refuses_a_grid_of_more_than_two_levels():
    with pytest.raises(ValueError, match="two levels"):
        straight_through_map("tanh", -3, 3)


def test_a_wrong_name_or_parameter_is_refused():
    with pytest.raises(RecipeError, match="hyperbolic_tangent"):
        straight_through_map("hyperbolic_tangen")
    with pytest.raises(RecipeError, match="height"):
        straight_through_map("triangular", height=1.5)


def test_every_estimator_is_judged():
    reasons = {name: straight_through_map(name).reason for name in ESTIMATORS.names()}

    assert {name for name, reason in reasons.items() if reason} == {
        "reverse_exponential",
        "element_wise_gradient_scaling",
        "hard_tanh",
        "approx_sign",
        "swish_sign",
        "rectified",
    }


@pytest.fixture
def added() -> Iterator[Any]:
    """Return what lists an estimator for the length of one test."""
    names: list[str] = []

    def add(function: Any) -> str:
        ESTIMATORS.add(function)
        names.append(function.__name__)
        return function.__name__

    yield add
    for name in names:
        del ESTIMATORS._members[name]


def test_a_home_made_estimator_goes_the_numeric_way(added):
    def lopsided(grad, u, low, high, *, tilt: float = 0.5):
        del low, high
        return grad * (1 + tilt * (u - torch.floor(u)))

    name = added(lopsided)
    found = straight_through_map(name, tilt=1.0)
    u = weights(-3, 3, torch.float64)

    # 1 / (1 + s) from level to level: alpha = 1 / ln 2, and M through the threshold at 1/2
    assert found.in_class
    assert found.alpha == pytest.approx(1 / math.log(2), rel=1e-9)
    assert (found.lower, found.upper) == pytest.approx((1, 2), abs=5e-3)  # it jumps at the levels
    expected = 0.5 + math.log(1.8 / 1.5) / math.log(2)
    assert found.map(vector(0.8)).item() == pytest.approx(expected, abs=1e-9)
    assert straight_through_map(name, -3, 3).in_class
    assert torch.equal(found.map(u).sub(0.5).floor(), u.sub(0.5).floor())


@pytest.mark.parametrize(
    ("slope", "why"),
    [
        (lambda g, u: 1 + 0.01 * u.abs(), "bin to bin"),
        (lambda g, u: torch.cos(2 * math.pi * u), "negative"),
        (lambda g, u: torch.sin(math.pi * u) ** 2 * (u != torch.round(u)), "0 in places"),
        (lambda g, u: 1 + 0.1 * torch.sign(g), "sign of the gradient"),
        (lambda g, u: 1 + g.abs(), "not linear"),
        (lambda g, u: 1 / (u - torch.floor(u) - 0.5).abs(), "not bounded"),
    ],
)
def test_a_home_made_estimator_outside_the_class_says_why(added, slope, why):
    def home_made(grad, u, low, high):
        del low, high
        return grad * slope(grad, u)

    assert why in straight_through_map(added(home_made)).reason


def test_a_home_made_estimator_may_look_at_the_bounds(added):
    def scaled_wave(grad, u, low, high):
        return grad * (1 + torch.cos(2 * math.pi * u) * 3 / (high - low + 4))

    name = added(scaled_wave)

    assert straight_through_map(name, -3, 3).alpha == pytest.approx(math.sqrt(1 - 0.09), rel=1e-9)
    assert straight_through_map(name, 0, 2).alpha == pytest.approx(math.sqrt(1 - 0.25), rel=1e-9)
