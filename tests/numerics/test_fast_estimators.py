"""Every fast form of an estimator against the estimator itself."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.fast_estimators import (
    FAST,
    above,
    closed,
    fast_form,
    half_open,
    limits_before_division,
)
from qtool.numerics.sign_family import SIGN_FAMILY

PARAMETERS: dict[str, list[dict[str, float]]] = {
    "hyperbolic_tangent": [{"sharpness": 0.1}, {"sharpness": 6.0}],
    "stacked_sigmoid": [{"sharpness": 9.0}],
    "sinusoidal": [{"amplitude": 0.0}, {"amplitude": -0.9}],
    "triangular": [{"height": 0.0}, {"height": 0.9}],
    "stable_qat": [{"amplitude": 0.0}, {"amplitude": 0.1}],
    "position_based": [{"slope": 150.0, "epsilon": 0.0}],
    "element_wise_gradient_scaling": [{"delta": 0.0}, {"delta": 3.0}],
    "trust": [{"threshold": 0.25}, {"threshold": 1.5}],
    "tanh": [{"sharpness": 0.3}, {"sharpness": 5.0}],
}
BOUNDS = {
    1: [(0.0, 1.0)],
    2: [(-1.0, 1.0), (-1.0, 2.0), (0.0, 3.0)],
    4: [(-7.0, 7.0), (-8.0, 7.0), (0.0, 15.0), (-5.0, 10.0)],
    8: [(-127.0, 127.0), (0.0, 255.0)],
}
CASES = [
    (name, params, bits)
    for name in FAST
    for params in [{}, *PARAMETERS.get(name, [])]
    for bits in BOUNDS
    if bits == 1 or name not in SIGN_FAMILY
]


def steps(low: float, high: float, dtype: torch.dtype) -> Tensor:
    """Return values all over the grid and far beyond, ties, and both bounds with what is beside."""
    spread = torch.linspace(low - 3.3, high + 3.3, 4_001, dtype=dtype)
    halves = torch.arange(2 * low - 3, 2 * high + 4, dtype=dtype) / 2
    beside = [torch.nextafter(halves, halves + step) for step in (-1, 1)]
    far = torch.tensor([-1e30, -1e6, -0.0, 1e6, 1e30], dtype=dtype)
    return torch.cat([spread, halves, *beside, far])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("name", "params", "bits"), CASES)
def test_a_fast_form_is_its_estimator(
    name: str, params: dict[str, Any], bits: int, dtype: torch.dtype
) -> None:
    for low, high in BOUNDS[bits]:
        u = steps(low, high, dtype)
        grad = torch.randn(u.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        before = grad.clone()
        plain = partial(ESTIMATORS[name], **params)
        expected = plain(grad, u, low, high)
        found = FAST[name](grad, u.clone(), low, high, **params)
        largest = float(torch.maximum(expected.abs().max(), grad.abs().max()))
        if dtype == torch.float64:
            close = 1e-12
            np.testing.assert_allclose(found, expected, rtol=close, atol=close * largest)
        else:
            close = 2e-4 if bits == 8 else 1e-6
            torch.testing.assert_close(found, expected, rtol=0, atol=close * largest)
        assert torch.equal(found == 0, expected == 0) or name in SIGN_FAMILY  # tails differ
        assert torch.equal(grad, before)


def test_every_fast_form_is_of_an_estimator() -> None:
    assert set(FAST) <= set(ESTIMATORS.names())


def test_a_fast_form_is_found_by_the_function_and_keeps_its_parameters() -> None:
    u, grad = torch.linspace(-3, 3, 50), torch.ones(50)
    fast = fast_form(ESTIMATORS.build("triangular", height=0.9))
    assert fast is not None
    torch.testing.assert_close(
        fast(grad, u.clone(), -2.0, 2.0), ESTIMATORS["triangular"](grad, u, -2.0, 2.0, height=0.9)
    )
    assert fast_form(ESTIMATORS["relu"]) is FAST["relu"]


def test_a_function_of_the_same_name_has_no_fast_form() -> None:
    def relu(grad: Tensor, u: Tensor, low: float, high: float) -> Tensor:
        return grad

    assert fast_form(relu) is None
    assert fast_form(partial(relu)) is None


def neighbours(centre: np.float32) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return 41 consecutive float32 around one of them."""
    found = [centre]
    for end in (np.float32(-np.inf), np.float32(np.inf)):
        value = centre
        for _ in range(20):
            value = np.nextafter(value, end)
            found.append(value)
    return np.array(found, dtype=np.float32)


@pytest.mark.parametrize("limits_of", [closed, half_open, above])
@pytest.mark.parametrize("bounds", [b for group in BOUNDS.values() for b in group], ids=str)
def test_limits_of_x_decide_as_those_of_its_quotient(limits_of: Any, bounds: Any) -> None:
    random = np.random.default_rng(0).lognormal(0, 4, 300)
    for scale in np.float32([1e-8, 1e-3, 0.25, 0.3, 1.0, 3.0, 1e3, *random]):
        limits = limits_of(*bounds)
        first, last = limits_before_division(limits, float(scale))
        x = np.concatenate([neighbours(np.float32(bound * scale)) for bound in bounds])
        u = torch.div(torch.from_numpy(x), torch.tensor(scale)).numpy()
        assert np.array_equal((x > first) & (x < last), (u > limits[0]) & (u < limits[1]))


def test_limits_of_x_may_lie_beyond_all_numbers() -> None:
    first, last = limits_before_division(closed(-128.0, 127.0), 1e37)
    assert (first, last) == (-np.inf, np.inf)
