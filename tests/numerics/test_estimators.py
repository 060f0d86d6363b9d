"""Every gradient estimator against its formula, written again in NumPy."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qtool.errors import RecipeError
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.relu_family import RELU_FAMILY
from qtool.numerics.schedules import MOVES
from qtool.numerics.sign_family import SIGN_FAMILY

Array = np.ndarray[Any, Any]


def logistic(x: Array | float) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x)))


def masked(slope: Callable[..., Array]) -> Callable[..., Array]:
    """Return g times the slope where the straight-through estimator passes g, else 0."""

    def formula(g: Array, u: Array, low: float, high: float, **params: float) -> Array:
        return np.where((u < low) | (u > high), 0, g * slope(u, **params))

    return formula


def on_v(h: Callable[..., Array]) -> Callable[..., Array]:
    return lambda g, u, low, high, **params: g * h(2 * u - 1, **params)


def near_threshold(u: Array) -> Array:
    return u - (np.rint(u - 0.5) + 0.5)


def hyperbolic_tangent(u: Array, sharpness: float = 2.1667) -> Array:
    return sharpness / np.tanh(sharpness) / np.cosh(2 * sharpness * near_threshold(u)) ** 2


def soft_quantization(u: Array, alpha: float = 0.2) -> Array:
    # as the paper writes it: s = 1 / (1 - alpha), k = ln(2 / alpha - 1), phi = s tanh(k t)
    s, k = 1 / (1 - alpha), np.log(2 / alpha - 1)
    return s * k * (1 - np.tanh(k * near_threshold(u)) ** 2) / 2


def stacked_sigmoid(u: Array, sharpness: float = 4.0) -> Array:
    s = logistic(sharpness * near_threshold(u))
    return sharpness * s * (1 - s) / (2 * logistic(sharpness / 2) - 1)


def stable_qat(u: Array, amplitude: float = 0.21) -> Array:
    # as the paper's code writes it: around v + round(v), not around v - round(v)
    s = np.sqrt(2) * np.pi * amplitude * np.cos(np.pi * (u + np.rint(u)))
    return 2 / (1 + s) - 1


def gradient_scaling(g: Array, u: Array, low: float, high: float, delta: float = 0.1) -> Array:
    error = u - np.minimum(np.maximum(np.rint(u), low), high)
    return np.where((u < low) | (u > high), 0, g + delta * np.abs(g) * error)


def swish_sign(v: Array, beta: float = 5.0) -> Array:
    x = beta * v
    return beta * (2 - x * np.tanh(x / 2)) / (1 + np.cosh(x))


def rectified(v: Array, power: float = 3.0) -> Array:
    v = np.abs(v)
    with np.errstate(divide="ignore"):
        root = np.power(v, (1 - power) / power) / power
    return np.select([v <= 0.1, v <= 1.5], [0.1 ** (1 / power) / 0.1, root])


FORMULAS: dict[str, Callable[..., Array]] = {
    "straight_through": masked(np.ones_like),
    "identity": lambda g, u, low, high: g,
    "relu": lambda g, u, low, high: np.where(u <= low, 0, g),
    "clipped_relu": lambda g, u, low, high: np.where((u <= low) | (u > high), 0, g),
    "reverse_exponential": lambda g, u, low, high: np.where(
        u <= low, 0, g / np.exp((u - low) / (high - low))
    ),
    "log_tailed_relu": lambda g, u, low, high: (
        g * np.select([u <= low, u <= high], [0, 1], 1 / np.where(u > high, u - high + 1, 1))
    ),
    "hyperbolic_tangent": masked(hyperbolic_tangent),
    "stacked_sigmoid": masked(stacked_sigmoid),
    "sinusoidal": masked(lambda u, amplitude=0.5: 1 - amplitude * np.cos(2 * np.pi * u)),
    "triangular": masked(lambda u, height=0.5: 1 - height + 4 * height * np.abs(u - np.rint(u))),
    "stable_qat": masked(stable_qat),
    "position_based": masked(
        lambda u, slope=4.0, epsilon=0.01: epsilon + slope * np.abs(u - np.rint(u))
    ),
    "element_wise_gradient_scaling": gradient_scaling,
    "magnitude_aware": lambda g, u, low, high: np.where(
        np.abs(2 * u - low - high) <= high - low,
        g,
        g * (high - low) / np.maximum(np.abs(2 * u - low - high), 1e-9),
    ),
    "soft_quantization": masked(soft_quantization),
    "trust": lambda g, u, low, high, threshold=0.5: np.where(
        np.abs(np.minimum(np.maximum(np.rint(u), low), high) - u) > threshold, 0, g
    ),
    "hard_tanh": on_v(lambda v: (np.abs(v) <= 1).astype(float)),
    "tanh": on_v(lambda v, sharpness=2.0: sharpness / np.cosh(sharpness * v) ** 2),
    "sigmoid": on_v(lambda v: 1 / (2 + 2 * np.cosh(v))),
    "approx_sign": on_v(lambda v: np.maximum(2 - 2 * np.abs(v), 0)),
    "swish_sign": on_v(swish_sign),
    "rectified": on_v(rectified),
}
PARAMETERS: dict[str, list[dict[str, Any]]] = {  # settings beside the defaults
    "hyperbolic_tangent": [{"sharpness": 0.01}, {"sharpness": 1.2}, {"sharpness": 50.0}],
    "stacked_sigmoid": [{"sharpness": 9.0}],
    "sinusoidal": [{"amplitude": 0.0}, {"amplitude": 0.95}, {"amplitude": -0.4}],
    "triangular": [{"height": 0.0}, {"height": 0.9}],
    "stable_qat": [{"amplitude": 0.0}, {"amplitude": 0.1}],
    "position_based": [{"slope": 150.0, "epsilon": 0.0}, {"epsilon": 0.5}],
    "element_wise_gradient_scaling": [{"delta": 0.0}, {"delta": 3.0}],
    "soft_quantization": [{"alpha": 0.02}, {"alpha": 0.9}],
    "trust": [{"threshold": 0.2}, {"threshold": 1.7}],
    "tanh": [{"sharpness": 0.3}, {"sharpness": 5.0}],
    "swish_sign": [{"beta": 0.7}, {"beta": 12.0}],
    "rectified": [{"power": 1.0}, {"power": 1.7}],
}
MOVING = {
    "hyperbolic_tangent": {"sharpness"},
    "sinusoidal": {"amplitude"},
    "element_wise_gradient_scaling": {"delta"},
    "tanh": {"sharpness"},
    "rectified": {"power"},
}
REFUSED: list[tuple[str, dict[str, float]]] = [
    ("hyperbolic_tangent", {"sharpness": 0.0}),
    ("stacked_sigmoid", {"sharpness": -1.0}),
    ("sinusoidal", {"amplitude": 1.0}),
    ("sinusoidal", {"amplitude": -1.0}),
    ("triangular", {"height": -0.1}),
    ("triangular", {"height": 1.0}),
    ("stable_qat", {"amplitude": -0.01}),
    ("stable_qat", {"amplitude": 0.2251}),
    ("position_based", {"slope": 0.0}),
    ("position_based", {"epsilon": -0.1}),
    ("element_wise_gradient_scaling", {"delta": -0.1}),
    ("soft_quantization", {"alpha": 0.0}),
    ("soft_quantization", {"alpha": 1.0}),
    ("trust", {"threshold": 0.0}),
    ("tanh", {"sharpness": 0.0}),
    ("swish_sign", {"beta": 0.0}),
    ("rectified", {"power": 0.9}),
    ("rectified", {"power": float("inf")}),
    ("rectified", {"power": float("nan")}),
]
CASES = [(name, params) for name in FORMULAS for params in [{}, *PARAMETERS.get(name, [])]]
BOUNDS = [(-7.0, 7.0), (-8.0, 7.0), (0.0, 15.0), (-3.0, 4.0), (-5.0, 10.0), (0.0, 1.0)]
TOLERANCES = {
    torch.float64: (1e-6, 1e-12),
    torch.float32: (1e-5, 1e-6),
    torch.bfloat16: (4e-3, 1e-30),
}

each_case = pytest.mark.parametrize(("name", "params"), CASES)
each_name = pytest.mark.parametrize("name", ESTIMATORS.names())
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def steps(low: float, high: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return values all over the grid, ties, both bounds and what lies right beside them."""
    spread = torch.linspace(low - 3.3, high + 3.3, 89, dtype=dtype)
    edges = torch.tensor([low, high], dtype=dtype)
    beside = [torch.nextafter(edges, edges + step) for step in (-1, 1)]
    halves = torch.cat([edges - 0.5, edges + 0.5])
    middle = torch.tensor([0.0, 0.25, 0.5, -0.5, 1.5, 2.5, -1.5], dtype=dtype)
    return torch.cat([spread, edges, *beside, halves, middle])


def gradients(u: Tensor) -> Tensor:
    grad = torch.randn(u.shape, generator=torch.Generator().manual_seed(0))
    return grad.index_fill(0, torch.tensor([40]), 0).to(u.dtype) if u.dim() == 1 else grad


def test_every_estimator_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(ESTIMATORS.names())


@each_case
@each_dtype
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_an_estimator_is_its_formula(
    name: str, params: dict[str, Any], dtype: torch.dtype, low: float, high: float
) -> None:
    if name in SIGN_FAMILY and (low, high) != (0.0, 1.0):
        return  # the sign family is for the grid of two levels
    u = steps(low, high, dtype)
    grad = gradients(u)
    found = ESTIMATORS.build(name, **params)(grad, u, low, high)
    expected = FORMULAS[name](grad.double().numpy(), u.double().numpy(), low, high, **params)
    rtol, atol = TOLERANCES[dtype]
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=rtol, atol=atol)


@each_case
def test_an_estimator_takes_the_gradient_of_either_sign(name: str, params: dict[str, Any]) -> None:
    u = steps(0.0, 1.0, torch.float64)
    for sign in (1.0, -1.0):
        found = ESTIMATORS.build(name, **params)(torch.full_like(u, sign), u, 0.0, 1.0)
        expected = FORMULAS[name](np.full(len(u), sign), u.numpy(), 0.0, 1.0, **params)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-12)


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
    # not bit for bit: exp and cos round differently where a row does not fill a vector register
    torch.testing.assert_close(found, torch.stack(rows), rtol=1e-6, atol=1e-6)


@each_case
@each_dtype
@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_gradient_keeps_its_type_and_shape(
    name: str, params: dict[str, Any], dtype: torch.dtype, as_tensor: bool
) -> None:
    u = steps(-7.0, 7.0, dtype).reshape(2, -1)
    low, high = (torch.tensor(-7.0), torch.tensor(7.0)) if as_tensor else (-7.0, 7.0)
    found = ESTIMATORS.build(name, **params)(gradients(u).to(dtype), u, low, high)
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


@each_case
@each_dtype
def test_the_gradient_is_finite_everywhere(
    name: str, params: dict[str, Any], dtype: torch.dtype
) -> None:
    far = torch.tensor([1e2, 1e6, 1e30, 3e38])
    u = torch.cat([-far.flip(0), torch.linspace(-20, 20, 4001), far]).to(dtype)
    for sign in (1.0, -1.0):
        for low, high in BOUNDS:
            found = ESTIMATORS.build(name, **params)(torch.full_like(u, sign), u, low, high)
            assert found.isfinite().all()


@pytest.mark.parametrize(("name", "params"), REFUSED)
def test_a_parameter_outside_its_domain_is_refused(name: str, params: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(params))):
        ESTIMATORS.build(name, **params)


def test_every_parameter_has_a_default_and_a_refused_value() -> None:
    for name in ESTIMATORS.names():
        for key, parameter in ESTIMATORS.parameters(name).items():
            assert isinstance(parameter.default, float)
            assert any(name == other and key in params for other, params in REFUSED)


@each_name
def test_only_some_parameters_take_a_schedule(name: str) -> None:
    moving = {
        key
        for key, parameter in ESTIMATORS.parameters(name).items()
        if MOVES in parameter.annotation.__metadata__
    }
    assert moving == MOVING.get(name, set())


@each_name
def test_a_docstring_is_a_sentence_a_formula_and_a_reference(name: str) -> None:
    sentence, formula, *remarks = (inspect.getdoc(ESTIMATORS[name]) or "").split("\n\n")
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert formula.startswith("    g_u = ")
    assert remarks[-1].startswith("Reference: ")


def test_the_families_are_parts_of_the_table() -> None:
    assert RELU_FAMILY.names() == [
        "relu",
        "clipped_relu",
        "reverse_exponential",
        "log_tailed_relu",
    ]
    assert set(RELU_FAMILY.names()) | set(SIGN_FAMILY.names()) <= set(ESTIMATORS.names())
