"""Every gradient estimator against its formula, written again in NumPy."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qtool.numerics.estimators import ESTIMATORS

Array = np.ndarray[Any, Any]

FORMULAS: dict[str, Callable[..., Array]] = {
    "straight_through": lambda g, u, low, high: np.where((u < low) | (u > high), 0, g),
    "identity": lambda g, u, low, high: g,
    "relu": lambda g, u, low, high: np.where(u <= low, 0, g),
    "clipped_relu": lambda g, u, low, high: np.where((u <= low) | (u > high), 0, g),
}
PARAMETERS: dict[str, list[dict[str, Any]]] = {}  # settings beside the defaults
CASES = [(name, params) for name in FORMULAS for params in [{}, *PARAMETERS.get(name, [])]]
BOUNDS = [(-7.0, 7.0), (-8.0, 7.0), (0.0, 15.0), (-3.0, 4.0), (-5.0, 10.0), (0.0, 1.0)]

each_case = pytest.mark.parametrize(("name", "params"), CASES)


def steps(low: float, high: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return values all over the grid, on both bounds and right beside them."""
    edges = [
        np.nextafter(np.float32(edge), np.float32(toward))
        for edge in (low, high)
        for toward in (edge - 1, edge, edge + 1)
    ]
    spread = np.linspace(low - 3.3, high + 3.3, 90, dtype=np.float32)
    return torch.tensor(np.concatenate([spread, edges, [0.0, 0.5, -0.5]]).astype(np.float32)).to(
        dtype
    )


def gradients(u: Tensor) -> Tensor:
    return torch.randn(u.shape, generator=torch.Generator().manual_seed(0)).to(u.dtype)


def test_every_estimator_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(ESTIMATORS.names())


@each_case
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_an_estimator_is_its_formula(
    name: str, params: dict[str, Any], low: float, high: float
) -> None:
    u = steps(low, high)
    grad = gradients(u)
    found = ESTIMATORS.build(name, **params)(grad, u, low, high)
    expected = FORMULAS[name](grad.double().numpy(), u.double().numpy(), low, high, **params)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@each_case
def test_bounds_may_be_tensors_of_one_value(name: str, params: dict[str, Any]) -> None:
    u = steps(-5.0, 10.0)
    estimator = ESTIMATORS.build(name, **params)
    found = estimator(gradients(u), u, torch.tensor(-5.0), torch.tensor(10.0))
    assert torch.equal(found, estimator(gradients(u), u, -5.0, 10.0))


@each_case
def test_bounds_may_be_tensors_with_one_value_for_each_channel(
    name: str, params: dict[str, Any]
) -> None:
    u = torch.stack([steps(low, high) for low, high in BOUNDS])
    grad = gradients(u)
    low, high = (torch.tensor(bound).unsqueeze(1) for bound in zip(*BOUNDS, strict=True))
    estimator = ESTIMATORS.build(name, **params)
    found = estimator(grad, u, low, high)
    rows = [estimator(g, r, *bounds) for g, r, bounds in zip(grad, u, BOUNDS, strict=True)]
    assert torch.equal(found, torch.stack(rows))


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_gradient_keeps_its_type_and_shape(
    name: str, params: dict[str, Any], dtype: torch.dtype, as_tensor: bool
) -> None:
    u = steps(-7.0, 7.0, dtype).reshape(3, -1)
    low, high = (torch.tensor(-7.0), torch.tensor(7.0)) if as_tensor else (-7.0, 7.0)
    found = ESTIMATORS.build(name, **params)(gradients(u), u, low, high)
    assert (found.dtype, found.shape) == (dtype, u.shape)


@each_case
def test_an_estimator_changes_neither_the_gradient_nor_the_steps(
    name: str, params: dict[str, Any]
) -> None:
    u = steps(-7.0, 7.0)
    grad = gradients(u)
    before = grad.clone(), u.clone()
    ESTIMATORS.build(name, **params)(grad, u, -7.0, 7.0)
    assert torch.equal(grad, before[0])
    assert torch.equal(u, before[1])
