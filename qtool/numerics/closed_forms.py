"""Closed forms of alpha and M(u), where an estimator's 1 / derivative has an antiderivative.

Each function takes an estimator's parameters under its name. Those in CLOSED_FORMS return alpha
and the warp of one bin: t -> M(m + t) - m, with m the nearest threshold and t in [-1/2, 1/2].
Those in SIGN_FORMS return v -> integral from 0 to v of ds / h(s). Tensors are float64.

Reference: Schoenbauer et al., 2024, arXiv:2405.05171; the antiderivatives beside its own (those of
the hyperbolic tangent) are qtool's.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qtool.numerics.sign_family import RECTIFIED_CORE, RECTIFIED_REACH

Warp = Callable[[Tensor], Tensor]


def unchanged() -> tuple[float, Warp]:
    """Return alpha and warp of a derivative that is 1 throughout the bin."""
    return 1.0, lambda t: t


def hyperbolic_tangent(sharpness: float) -> tuple[float, Warp]:
    """Alpha = 4 k^2 coth k / (2k + sinh 2k), M = (4kt + sinh 4kt) / (2 (2k + sinh 2k)).

    Numerators and denominators carry a common factor exp(-2k), lest sinh overflow.
    """
    k, fade = sharpness, math.exp(-2 * sharpness)
    total = 2 * k * fade - math.expm1(-4 * k) / 2

    def warp(t: Tensor) -> Tensor:
        x = 4 * k * t.abs()
        sinh = -torch.expm1(-2 * x) * torch.exp(x - 2 * k) / 2
        return torch.sign(t) * (x * fade + sinh) / (2 * total)

    return 4 * k * k / math.tanh(k) * fade / total, warp


def stacked_sigmoid(sharpness: float) -> tuple[float, Warp]:
    """Return those of the hyperbolic tangent with k = A / 4."""
    return hyperbolic_tangent(sharpness / 4)


def soft_quantization(alpha: float) -> tuple[float, Warp]:
    """Return those of the hyperbolic tangent with k = artanh(1 - alpha)."""
    return hyperbolic_tangent(math.atanh(1 - alpha))


def sinusoidal(amplitude: float) -> tuple[float, Warp]:
    """Alpha = sqrt(1 - a^2), M = atan(sqrt((1 - a) / (1 + a)) tan(pi t)) / pi."""
    ratio = math.sqrt((1 - amplitude) / (1 + amplitude))
    alpha = math.sqrt((1 - amplitude) * (1 + amplitude))
    return alpha, lambda t: torch.atan(ratio * torch.tan(math.pi * t)) / math.pi


def triangular(height: float) -> tuple[float, Warp]:
    """Alpha = h / artanh(h), M = -sign(t) alpha / (4h) ln(1 - 4h |t| / (1 + h))."""
    if height == 0:
        return unchanged()
    alpha, depth = height / math.atanh(height), 4 * height

    def warp(t: Tensor) -> Tensor:
        return -torch.sign(t) * alpha / depth * torch.log1p(-depth * t.abs() / (1 + height))

    return alpha, warp


def stable_qat(amplitude: float) -> tuple[float, Warp]:
    """Return alpha and alpha (-f + 4 / (pi r) atan(sqrt((1 + c) / (1 - c)) tan(pi f / 2))).

    c = sqrt(2) pi A, r = sqrt(1 - c^2), f = u - q from the nearest level q; alpha from f = 1/2.
    """
    c = math.sqrt(2) * math.pi * amplitude
    factor = 4 / (math.pi * math.sqrt((1 - c) * (1 + c)))
    ratio = math.sqrt((1 + c) / (1 - c))
    alpha = 1 / (2 * factor * math.atan(ratio) - 1)

    def from_level(f: Tensor) -> Tensor:
        return alpha * (factor * torch.atan(ratio * torch.tan(math.pi / 2 * f)) - f)

    return alpha, _about_levels(from_level)


def position_based(slope: float, epsilon: float) -> tuple[float, Warp]:
    """Alpha = b / (2 ln(1 + b / (2 eps))), M = q + sign(f) alpha / b ln(1 + b |f| / eps)."""
    if epsilon == 0:
        return 0.0, lambda t: t
    alpha = slope / (2 * math.log1p(slope / (2 * epsilon)))

    def from_level(f: Tensor) -> Tensor:
        return torch.sign(f) * alpha / slope * torch.log1p(slope * f.abs() / epsilon)

    return alpha, _about_levels(from_level)


def _about_levels(from_level: Warp) -> Warp:
    """Turn f -> M(q + f) - q, about the nearest level q, into a warp about the threshold."""

    def warp(t: Tensor) -> Tensor:
        to_level = torch.sign(t) / 2
        return to_level + from_level(t - to_level)

    return warp


def hard_tanh() -> Warp:
    """Return v: h is 1 between the levels, and 0 beyond, where there is no integral."""
    return lambda v: v


def tanh(sharpness: float) -> Warp:
    """Return (2kv + sinh 2kv) / (4 k^2)."""
    return lambda v: (2 * sharpness * v + torch.sinh(2 * sharpness * v)) / (4 * sharpness**2)


def sigmoid() -> Warp:
    """Return 2v + 2 sinh v."""
    return lambda v: 2 * v + 2 * torch.sinh(v)


def approx_sign() -> Warp:
    """Return -sign(v) ln(1 - |v|) / 2, infinite at the levels."""
    return lambda v: -torch.sign(v) * torch.log1p(-v.abs()) / 2


def rectified(power: float) -> Warp:
    """With e = 2 - 1/o and the core m: v m^(e - 1), then sign(v) (m^e + o/e (|v|^e - m^e))."""
    core, e = RECTIFIED_CORE, 2 - 1 / power

    def integral(v: Tensor) -> Tensor:
        far = core**e + power / e * (v.abs().clamp(core, RECTIFIED_REACH) ** e - core**e)
        return torch.where(v.abs() <= core, v * core ** (e - 1), torch.sign(v) * far)

    return integral


CLOSED_FORMS: dict[str, Callable[..., tuple[float, Warp]]] = {
    form.__name__: form
    for form in (
        hyperbolic_tangent,
        soft_quantization,
        stacked_sigmoid,
        sinusoidal,
        triangular,
        stable_qat,
        position_based,
    )
} | dict.fromkeys(
    (
        "straight_through",
        "identity",
        "relu",
        "clipped_relu",
        "log_tailed_relu",
        "magnitude_aware",
    ),
    unchanged,
)
SIGN_FORMS: dict[str, Callable[..., Warp]] = {
    form.__name__: form for form in (hard_tanh, tanh, sigmoid, approx_sign, rectified)
}
