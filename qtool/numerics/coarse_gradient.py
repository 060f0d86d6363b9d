"""Closed forms of the coarse gradient for a network of two linear layers with binary activation.

The network is y(Z, v, w) = sum_i v_i sigma(Z_i . w), sigma(x) = 1 for x > 0, else 0, for inputs
Z [m, n] of independent N(0, 1); its teacher is y(Z, v*, w*) with |w*| = 1, and its loss is
f = E (y - y*)^2 / 2. The coarse gradient puts the derivative mu' of an estimator in the place of
sigma':

    g_w = Z^T (mu'(Z w) * v) (y - y*)

Everywhere v and v* are [m], w and w* are [n], and theta is the angle between w and w*; results
are float64. At theta = 0 and pi the part of w* at right angles to w, written e2, is zero.

Reference: Yin et al., 2019, arXiv:1903.05662.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qtool.problems import did_you_mean

ROUNDING = 1e-12  # a sine below this is what rounding leaves of w parallel to w*
ROOT_OF_2_PI = math.sqrt(2 * math.pi)


class _Point(NamedTuple):
    """A student and its teacher; e is w's direction, e2 the direction from it to w*."""

    v: Tensor
    v_star: Tensor
    w_star: Tensor
    norm: float
    theta: float
    e: Tensor
    e2: Tensor


def population_loss(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> Tensor:
    """Return f(v, w), []; also at w = 0, where the student is silent.

    f = 1/8 (v'(I + 11')v - 2 v'((1 - 2 theta/pi) I + 11')v* + v*'(I + 11')v*)

    Examples:
        >>> v, w = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 0.0]).double()
        >>> float(population_loss(v, 3 * w, v, w))  # the length of w does not matter
        0.0
        >>> float(population_loss(v, w.flip(0), v, w))  # theta = pi / 2: |v|^2 / 4
        1.25
    """
    v, w, v_star, w_star = _checked(v, w, v_star, w_star)
    of_teacher = v_star @ _with_ones(v_star, 1.0)
    if not w.any():
        return of_teacher / 8
    share = 1 - 2 * _point(v, w, v_star, w_star).theta / math.pi
    return (v @ _with_ones(v, 1.0) - 2 * v @ _with_ones(v_star, share) + of_teacher) / 8


def population_gradients(
    v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor
) -> tuple[Tensor, Tensor]:
    """Return df/dv [m] and df/dw [n], the gradients of `population_loss`.

        df/dv = 1/4 (I + 11')v - 1/4 ((1 - 2 theta/pi) I + 11')v*
        df/dw = -(v.v*) / (2 pi |w|) e2

    At theta = 0 and pi, where f has a kink, df/dw is returned as zero.
    """
    p = _point(*_checked(v, w, v_star, w_star))
    share = 1 - 2 * p.theta / math.pi
    of_v = (_with_ones(p.v, 1.0) - _with_ones(p.v_star, share)) / 4
    return of_v, -(p.v @ p.v_star) / (2 * math.pi * p.norm) * p.e2


def expected_coarse_gradient(
    name: str, v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor
) -> Tensor:
    """Return E g_w [n] for the estimator "identity", "relu" or "clipped_relu".

    Raises:
        ValueError: If the estimator has no closed form, w is 0, w* is not of norm 1 or the
            shapes do not fit.
    """
    if name not in CLOSED_FORMS:
        hint = did_you_mean(name, CLOSED_FORMS)
        raise ValueError(f"no closed form for the estimator {name!r}{hint}")
    return CLOSED_FORMS[name](_point(*_checked(v, w, v_star, w_star)))


def _identity(p: _Point) -> Tensor:
    """Return E g_w for mu' = 1: (|v|^2 e - (v.v*) w*) / sqrt(2 pi)."""
    return (p.v @ p.v * p.e - p.v @ p.v_star * p.w_star) / ROOT_OF_2_PI


def _relu(p: _Point) -> Tensor:
    """Return E g_w for mu' = [x > 0].

        h e / (2 sqrt(2 pi)) - cos(theta/2) (v.v*) / sqrt(2 pi) (e + w*) / |e + w*|

    Since |e + w*| = 2 cos(theta/2), the last factors are (e + w*) / 2, also at theta = pi.
    """
    return (_own_part(p) * p.e - p.v @ p.v_star * (p.e + p.w_star)) / (2 * ROOT_OF_2_PI)


def _clipped_relu(p: _Point) -> Tensor:
    """Return E g_w for mu' = [0 < x < 1].

        p(0) h e / 2 - (v.v*) (p(theta) e + q(theta) e2)
        p(theta) = E x [0 < x < a, z > 0],  q(theta) = E y [0 < x < a, z > 0],  a = 1/|w|

    for x, y of N(0, 1) along e and e2, and z = x cos(theta) + y sin(theta) along w*. With phi and
    Phi of N(0, 1), integrating first over y gives

        q = sin(theta) / (2 sqrt(2 pi)) erf(a / (sqrt(2) sin(theta)))
        p = phi(0)/2 - phi(a) Phi(a cot(theta)) + cot(theta) q

    The paper writes both as integrals over the angle.
    """
    a = 1 / p.norm
    cosine, sine = math.cos(p.theta), max(math.sin(p.theta), 1e-300)
    share = math.erf(a / sine / math.sqrt(2)) / (2 * ROOT_OF_2_PI)
    below = math.erfc(-a * cosine / sine / math.sqrt(2)) / 2
    along = (0.5 - math.exp(-a * a / 2) * below) / ROOT_OF_2_PI + cosine * share
    at_0 = -math.expm1(-a * a / 2) / ROOT_OF_2_PI
    towards_e = at_0 / 2 * _own_part(p) - p.v @ p.v_star * along
    return towards_e * p.e - p.v @ p.v_star * sine * share * p.e2


CLOSED_FORMS: dict[str, Callable[[_Point], Tensor]] = {
    "identity": _identity,
    "relu": _relu,
    "clipped_relu": _clipped_relu,
}


def spurious_minimum(v_star: Tensor, w_star: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return (v [m], w [n]) of the local minima that are not global; None where there are none.

        v = (I + 11')^-1 (11' - I)v*, theta = pi,  if and only if (1.v*)^2 < (m + 1)/2 |v*|^2

    Any positive multiple of w is one too. Where 1.v* = 0 their loss is 0 as well.
    """
    v_star, w_star = _vector("v_star", v_star), _unit_vector("w_star", w_star)
    if not _has_spurious_minima(v_star):
        return None
    return _solve(_with_ones(v_star, -1.0)), -w_star


def saddle_point(v_star: Tensor) -> tuple[Tensor, float] | None:
    """Return (v [m], theta) of the saddle points; None where there are none.

        theta = pi/2 (m + 1)|v*|^2 / d,  v = (I + 11')^-1 (-(1.v*)^2 / d I + 11')v*,
        d = (m + 1)|v*|^2 - (1.v*)^2,  if and only if (1.v*)^2 < (m + 1)/2 |v*|^2

    They are all w at the angle theta from w*.
    """
    v_star = _vector("v_star", v_star)
    if not _has_spurious_minima(v_star):
        return None
    scaled = (len(v_star) + 1) * float(v_star @ v_star)
    squared_sum = float(v_star.sum()) ** 2
    theta = math.pi / 2 * scaled / (scaled - squared_sum)
    return _solve(_with_ones(v_star, -squared_sum / (scaled - squared_sum))), theta


def _has_spurious_minima(v_star: Tensor) -> bool:
    return bool(v_star.sum() ** 2 < (len(v_star) + 1) / 2 * (v_star @ v_star))


def _with_ones(x: Tensor, share: float) -> Tensor:
    """Return (share I + 11')x."""
    return share * x + x.sum()


def _solve(x: Tensor) -> Tensor:
    """Return (I + 11')^-1 x = (I - 11' / (m + 1))x."""
    return x - x.sum() / (len(x) + 1)


def _own_part(p: _Point) -> Tensor:
    """Return h = |v|^2 + (1.v)^2 - (1.v)(1.v*) + v.v*."""
    total = p.v.sum()
    return p.v @ p.v + total**2 - total * p.v_star.sum() + p.v @ p.v_star


def _vector(name: str, x: Tensor) -> Tensor:
    if x.ndim != 1 or not len(x):
        raise ValueError(f"{name} must be a vector, got the shape {list(x.shape)}")
    return x.detach().double()


def _unit_vector(name: str, x: Tensor) -> Tensor:
    x = _vector(name, x)
    if not math.isclose(norm := float(x.norm()), 1.0, abs_tol=1e-6):
        raise ValueError(f"{name} must be of norm 1, got {norm:g}; divide it by its norm")
    return x


def _checked(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> tuple[Tensor, ...]:
    """Return all four as float64 vectors.

    Raises:
        ValueError: If w* is not of norm 1 or the shapes do not fit.
    """
    v, w, v_star = _vector("v", v), _vector("w", w), _vector("v_star", v_star)
    w_star = _unit_vector("w_star", w_star)
    for one, other, names in ((v, v_star, "v and v_star"), (w, w_star, "w and w_star")):
        if len(one) != len(other):
            raise ValueError(f"{names} must be of one length, got {len(one)} and {len(other)}")
    return v, w, v_star, w_star


def _point(v: Tensor, w: Tensor, v_star: Tensor, w_star: Tensor) -> _Point:
    norm = float(w.norm())
    if norm == 0.0:
        raise ValueError("w is 0, where there is no gradient; start from any other w")
    e = w / norm
    # exact at small angles and near pi, where the arc cosine loses half of the digits
    theta = 2 * math.atan2(float((e - w_star).norm()), float((e + w_star).norm()))
    across = w_star - (w_star @ e) * e
    sine = across.norm()
    e2 = across / sine if sine > ROUNDING else torch.zeros_like(e)
    return _Point(v, v_star, w_star, norm, theta, e, e2)
