"""The two-layer network of Yin et al.: closed forms against samples, differences and descent."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qtool.numerics.coarse_gradient import (
    expected_coarse_gradient,
    population_gradients,
    population_loss,
    saddle_point,
    spurious_minimum,
)
from qtool.numerics.estimators import ESTIMATORS

NAMES = ["identity", "relu", "clipped_relu"]
Point = tuple[Tensor, Tensor, Tensor, Tensor]

each_estimator = pytest.mark.parametrize("name", NAMES)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


VECTOR: Point = (
    vector(1, -0.5, 2),
    vector(0.3, -0.4, 1.2, 0.1),
    vector(0.5, 1, -1.5),
    vector(0.5, 0.5, -0.5, 0.5),
)
THETA = 2.04899312


def random_point(seed: int, m: int = 3, n: int = 4) -> Point:
    generator = torch.Generator().manual_seed(seed)
    v, w, v_star, w_star = (
        torch.randn(k, generator=generator, dtype=torch.float64) for k in (m, n, m, n)
    )
    return v, w, v_star, w_star / w_star.norm()


POINTS = [VECTOR, random_point(0), random_point(1, 1, 2), random_point(2, 6, 3)]
each_point = pytest.mark.parametrize("point", POINTS, ids=["vector", "3x4", "1x2", "6x3"])


def angle(w: Tensor, w_star: Tensor) -> float:
    return math.acos(float(w @ w_star / w.norm()))


def close(found: Tensor, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found.numpy(), np.asarray(expected), rtol=0, atol=tolerance)


def test_the_vector_worked_out_beforehand_is_met() -> None:
    assert math.isclose(angle(VECTOR[1], VECTOR[3]), THETA, abs_tol=1e-8)
    close(population_loss(*VECTOR), 1.64667785, 1e-7)
    of_v, of_w = population_gradients(*VECTOR)
    close(of_v, [0.91305369, 0.57610738, 1.01083892], 1e-7)
    close(of_w, [0.24990635, 0.14800279, -0.03154158, 0.22079105], 1e-7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("identity", [1.08032367, -0.04413358, 1.32922758, 0.75905017]),
        ("relu", [0.82701317, -0.40453524, 1.81201915, 0.4751422]),
        ("clipped_relu", [0.34941453, -0.0383816, 0.48157718, 0.23861563]),
    ],
)
def test_the_coarse_gradients_of_that_vector_are_met(name: str, expected: list[float]) -> None:
    close(expected_coarse_gradient(name, *VECTOR), expected, 1e-7)


@each_point
def test_the_gradients_are_the_central_differences_of_the_loss(point: Point) -> None:
    v, w, v_star, w_star = point
    step = 1e-5
    for found, place in zip(population_gradients(*point), (0, 1), strict=True):
        for k in range(len(found)):
            at = []
            for sign in (1, -1):
                moved = [v.clone(), w.clone()]
                moved[place][k] += sign * step
                at.append(float(population_loss(*moved, v_star, w_star)))
            close(found[k], (at[0] - at[1]) / (2 * step), 1e-8)


def means_of_samples(point: Point) -> dict[str, tuple[Tensor, Tensor]]:
    """Return mean and standard error of the loss, of df/dv and of each coarse gradient.

    Works on 400,000 inputs of the network, whose backward pass is the estimator of the registry:
    the grid is {0, 1} with scale 1, so that the steps are Z w.
    """
    v, w, v_star, w_star = point
    generator = torch.Generator().manual_seed(5)
    chunks, size = 8, 50_000
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for _ in range(chunks):
        z = torch.randn(size, len(v), len(w), generator=generator, dtype=torch.float64)
        u = z @ w
        outputs = (u > 0).double()
        error = outputs @ v - (z @ w_star > 0).double() @ v_star
        drawn = {"loss": (error**2 / 2).unsqueeze(1), "v": outputs * error.unsqueeze(1)}
        for name in NAMES:
            grad_u = ESTIMATORS.build(name)(error.unsqueeze(1) * v, u, 0.0, 1.0)
            drawn[name] = (z * grad_u.unsqueeze(2)).sum(1)
        for name, values in drawn.items():
            seen.setdefault(name, []).append((values.mean(0), values.square().mean(0)))
    found = {}
    for name, moments in seen.items():
        mean, square = (torch.stack(kind).mean(0) for kind in zip(*moments, strict=True))
        found[name] = mean, ((square - mean**2) / (chunks * size)).sqrt()
    return found


@each_point
def test_closed_forms_are_the_means_of_samples_through_the_registrys_estimators(
    point: Point,
) -> None:
    sampled = means_of_samples(point)
    closed = {name: expected_coarse_gradient(name, *point) for name in NAMES}
    closed |= {"loss": population_loss(*point), "v": population_gradients(*point)[0]}
    for name, expected in closed.items():
        mean, standard_error = sampled[name]
        assert ((mean - expected).abs() <= 4 * standard_error).all(), name
        # samples that cannot tell the closed forms apart would prove nothing
        assert (standard_error <= 0.02 * (1 + expected.abs())).all(), name


@each_point
def test_descent_along_a_coarse_gradient_is_descent_of_the_loss(point: Point) -> None:
    v, w, v_star, w_star = point
    _, of_w = population_gradients(*point)
    product = float(v @ v_star)
    sine, norm = math.sin(angle(w, w_star)), float(w.norm())
    inner = {name: float(expected_coarse_gradient(name, *point) @ of_w) for name in NAMES}
    relu = sine * product**2 / (2 * (2 * math.pi) ** 1.5 * norm)
    assert math.isclose(inner["relu"], relu, rel_tol=1e-10)
    assert math.isclose(inner["identity"], 2 * relu, rel_tol=1e-10)
    _, across = by_angles(angle(w, w_star), norm)
    clipped = across * product**2 / (2 * math.pi * norm)
    assert math.isclose(inner["clipped_relu"], clipped, rel_tol=1e-6)


def by_angles(theta: float, norm: float) -> tuple[float, float]:
    """Return the paper's p(theta, w) and q(theta, w), integrals over the angle, by midpoints."""
    edges = np.linspace(theta - np.pi / 2, np.pi / 2, 20_001)
    phi = (edges[1:] + edges[:-1]) / 2
    x = 1 / (np.cos(phi) * norm)
    erf = np.array([math.erf(value / math.sqrt(2)) for value in x])
    xi = np.sqrt(np.pi / 2) * erf - x * np.exp(-(x**2) / 2)
    weighted = xi * (edges[1] - edges[0]) / (2 * np.pi)
    return float(np.cos(phi) @ weighted), float(np.sin(phi) @ weighted)


@pytest.mark.parametrize("norm", [0.2, 0.7, 1.5, 4.0, 20.0])
@pytest.mark.parametrize("theta", [0.1, 1.0, 2.0, 3.0])
def test_the_clipped_form_is_the_papers_integral_over_the_angle(theta: float, norm: float) -> None:
    v, w, v_star, w_star = turned(theta, norm)
    found = expected_coarse_gradient("clipped_relu", v, w, v_star, w_star)
    product, total = float(v @ v_star), float(v.sum())
    h = float(v @ v + total**2 - total * v_star.sum()) + product
    e = w / norm
    e2 = (w_star - math.cos(theta) * e) / math.sin(theta)
    along, across = by_angles(theta, norm)
    at_0 = -math.expm1(-1 / (2 * norm**2)) / math.sqrt(2 * math.pi)
    close(found, at_0 * h / 2 * e - product * (along * e + across * e2), 1e-7)


def turned(theta: float, norm: float = 0.7) -> Point:
    """Return a point at the angle theta."""
    v, _, v_star, w_star = VECTOR
    across = vector(0.5, -0.5, 0.5, 0.5)
    return v, norm * (math.cos(theta) * w_star + math.sin(theta) * across), v_star, w_star


@each_estimator
@pytest.mark.parametrize("theta", [0.0, math.pi])
def test_coarse_gradients_are_continuous_where_w_is_parallel_to_the_teacher(
    name: str, theta: float
) -> None:
    there = expected_coarse_gradient(name, *turned(theta))
    assert torch.isfinite(there).all()
    for distance in (1e-5, 1e-9, 1e-14):
        beside = expected_coarse_gradient(name, *turned(abs(theta - distance)))
        close(beside, there, 20 * distance + 1e-10)


@pytest.mark.parametrize("distance", [1e-3, 1e-6, 1e-9])
def test_small_angles_are_told_from_each_other(distance: float) -> None:
    v, w, v_star, w_star = turned(distance)
    same = population_loss(v, w_star, v_star, w_star)
    expected = float(v @ v_star) * distance / (2 * math.pi)  # f is linear in theta
    close(population_loss(v, w, v_star, w_star) - same, expected, 1e-14)


@each_estimator
@pytest.mark.parametrize("norm", [1e-150, 1e-3, 1e3, 1e150])
def test_any_norm_of_w_gives_finite_gradients(name: str, norm: float) -> None:
    v, w, v_star, w_star = turned(1.0, norm)
    assert torch.isfinite(expected_coarse_gradient(name, v, w, v_star, w_star)).all()
    close(population_loss(v, w, v_star, w_star), population_loss(*turned(1.0)), 1e-12)


def test_a_silent_student_has_the_loss_of_the_teacher_alone() -> None:
    v, w, v_star, w_star = VECTOR
    expected = float(v_star @ v_star + v_star.sum() ** 2) / 8
    close(population_loss(v, torch.zeros_like(w), v_star, w_star), expected, 1e-15)


def test_the_teacher_itself_has_no_loss_and_no_gradient() -> None:
    _, _, v_star, w_star = VECTOR
    at = (v_star, 3 * w_star, v_star, w_star)
    close(population_loss(*at), 0.0, 1e-14)
    for found in (*population_gradients(*at), *(expected_coarse_gradient(n, *at) for n in NAMES)):
        close(found, np.zeros(len(found)), 1e-14)


TEACHERS = [vector(1, -0.5, 0.8), vector(-0.5, -1, 1.7), vector(2, -1, 0.3, 0.4, 1), vector(2, -1)]
W_STAR = vector(0.6, 0.8)


@pytest.mark.parametrize("v_star", TEACHERS)
def test_the_spurious_minimum_is_stationary_for_the_loss_and_for_relu_but_not_for_identity(
    v_star: Tensor,
) -> None:
    found = spurious_minimum(v_star, W_STAR)
    assert found is not None
    v, w = found
    m, total = len(v_star), float(v_star.sum())
    every = torch.ones(m, m, dtype=torch.float64)
    unit = torch.eye(m, dtype=torch.float64)
    close(v, torch.linalg.solve(unit + every, (every - unit) @ v_star), 1e-12)
    assert torch.equal(w, -W_STAR)
    for gradient in population_gradients(v, w, v_star, W_STAR):
        close(gradient, np.zeros(len(gradient)), 1e-12)
    for name in ("relu", "clipped_relu"):
        close(expected_coarse_gradient(name, v, w, v_star, W_STAR), np.zeros(2), 1e-12)
    expected = 2 * (m - 1) / (math.sqrt(2 * math.pi) * (m + 1) ** 2) * total**2
    norm = float(expected_coarse_gradient("identity", v, w, v_star, W_STAR).norm())
    assert math.isclose(norm, expected, rel_tol=1e-10, abs_tol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_what_rounding_leaves_of_a_parallel_w_is_no_direction(seed: int) -> None:
    w_star = random_point(seed, n=7)[3]
    for w in (3.3 * w_star, -0.7 * w_star):
        _, of_w = population_gradients(VECTOR[0], w, VECTOR[2], w_star)
        assert not of_w.any()


@pytest.mark.parametrize("v_star", TEACHERS)
def test_the_loss_is_larger_all_around_the_spurious_minimum(v_star: Tensor) -> None:
    v, w = spurious_minimum(v_star, W_STAR) or (None, None)
    assert v is not None
    lowest = float(population_loss(v, w, v_star, W_STAR))
    assert lowest > 0.001
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        step = [
            1e-2 * torch.randn(len(x), generator=generator, dtype=torch.float64) for x in (v, w)
        ]
        assert population_loss(v + step[0], w + step[1], v_star, W_STAR) > lowest


@pytest.mark.parametrize("v_star", TEACHERS)
def test_the_saddle_point_is_stationary_and_no_minimum(v_star: Tensor) -> None:
    found = saddle_point(v_star)
    assert found is not None
    v, theta = found
    assert 0 < theta < math.pi

    def at(v: Tensor, theta: float) -> float:
        w = vector(0.6 * math.cos(theta) - 0.8 * math.sin(theta), 0.8 * math.cos(theta))
        w[1] += 0.6 * math.sin(theta)
        return float(population_loss(v, w, v_star, W_STAR))

    share = 1 - 2 * theta / math.pi
    close(v + v.sum(), share * v_star + v_star.sum(), 1e-12)  # 4 df/dv = 0
    close(v @ v_star, 0.0, 1e-12)  # df/dw = 0
    here = at(v, theta)
    assert at(v + 0.01 * v_star, theta - 0.1) < here - 1e-5
    assert at(v + 0.01 * v_star, theta + 0.1) > here + 1e-5


@pytest.mark.parametrize(
    ("v_star", "exists"),
    [
        (vector(1, 1, 1), False),  # 9 against 6
        (vector(1, 1, -1), True),  # 1 against 6
        (vector(1, 1), False),  # 4 against 3
        (vector(1, 0), True),  # 1 against 3/2
        (vector(2, 1), False),  # 9 against 15/2
        (vector(3, 1), False),  # 16 against 15
        (vector(4, 1), True),  # 25 against 51/2
        (vector(1), False),  # 1 against 1
        (vector(0, 0), False),
    ],
)
def test_spurious_minima_exist_exactly_under_the_condition(v_star: Tensor, exists: bool) -> None:
    assert (spurious_minimum(v_star, W_STAR) is not None) == exists
    assert (saddle_point(v_star) is not None) == exists


def descend(name: str, v: Tensor, w: Tensor, v_star: Tensor, steps: int, rate: float) -> Tensor:
    """Return the losses of Algorithm 1: both layers move at once, by one learning rate."""
    losses = []
    for _ in range(steps):
        of_v, _ = population_gradients(v, w, v_star, W_STAR)
        of_w = expected_coarse_gradient(name, v, w, v_star, W_STAR)
        v, w = v - rate * of_v, w - rate * of_w
        losses.append(population_loss(v, w, v_star, W_STAR))
    return torch.stack(losses)


def test_beside_the_spurious_minimum_relu_settles_and_identity_is_repelled() -> None:
    v_star = vector(1, -0.5, 0.8)
    v, w = spurious_minimum(v_star, W_STAR) or (None, None)
    assert v is not None
    assert w is not None
    settled = population_loss(v, w, v_star, W_STAR)
    turn = math.pi - 0.05
    w = vector(
        0.6 * math.cos(turn) - 0.8 * math.sin(turn), 0.8 * math.cos(turn) + 0.6 * math.sin(turn)
    )
    losses = {name: descend(name, v, w, v_star, 3000, 0.02) for name in NAMES}
    for name in ("relu", "clipped_relu"):
        assert losses[name].diff().max() < 1e-6
        close(losses[name][-1], settled, 1e-3)
    assert losses["identity"].diff().max() > 0.01
    assert losses["identity"].max() > settled + 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w_star": vector(1, 1, 0, 0)}, r"w_star must be of norm 1, got 1\.41421; divide it by"),
        ({"w_star": vector(1, 0)}, "w and w_star must be of one length, got 4 and 2"),
        ({"v_star": vector(1, 0)}, "v and v_star must be of one length, got 3 and 2"),
        ({"v": torch.ones(3, 1)}, r"v must be a vector, got the shape \[3, 1\]"),
        ({"w": torch.zeros(4)}, "w is 0, where there is no gradient"),
    ],
)
def test_what_is_no_point_is_refused(changes: dict[str, Tensor], message: str) -> None:
    point = dict(zip(("v", "w", "v_star", "w_star"), VECTOR, strict=True)) | changes
    with pytest.raises(ValueError, match=message):
        population_gradients(**point)
    with pytest.raises(ValueError, match=message):
        expected_coarse_gradient("relu", **point)
    if "w" not in changes:
        with pytest.raises(ValueError, match=message):
            population_loss(**point)


def test_the_places_of_the_landscape_refuse_a_teacher_that_is_none() -> None:
    with pytest.raises(ValueError, match="w_star must be of norm 1, got 2"):
        spurious_minimum(vector(1, -1), vector(2, 0))
    with pytest.raises(ValueError, match="v_star must be a vector"):
        spurious_minimum(torch.ones(2, 2), W_STAR)
    with pytest.raises(ValueError, match="v_star must be a vector"):
        saddle_point(torch.tensor(1.0))


def test_an_estimator_without_a_closed_form_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no closed form .* 'cliped_relu'; did you mean clipped"):
        expected_coarse_gradient("cliped_relu", *VECTOR)
    with pytest.raises(ValueError, match="choose one of: identity, relu, clipped_relu"):
        expected_coarse_gradient("xyz", *VECTOR)


def test_parameters_in_float32_give_float64_without_a_graph() -> None:
    point = [x.float().requires_grad_() for x in VECTOR]
    found = [population_loss(*point), *population_gradients(*point)]
    found += [expected_coarse_gradient(name, *point) for name in NAMES]
    assert all(x.dtype == torch.float64 and not x.requires_grad for x in found)
    close(found[0], 1.64667785, 1e-6)
