"""Fast forms of the gradient estimators, for CPUs: the same functions in fewer passes over memory.

The function in ESTIMATORS is the definition, and a fast form is that function up to rounding:

    g_u = slope(u) * g * [first < u < last]

A comparison that yields a bool costs a CPU as much as ten products, so the two limits are
exclusive: torch stops a gradient by them in one pass. A fast form takes bounds that are numbers.
To add one, write its slope here, with the parameters of the estimator, and list it in FAST.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.steps import to_float32

Limits = tuple[float, float]
FLOATS: dict[torch.dtype, type[np.float32] | type[np.float64]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
}
HARDTANH_BACKWARD = torch.ops.aten.hardtanh_backward.grad_input
TANH_BACKWARD = torch.ops.aten.tanh_backward.grad_input
SIGMOID_BACKWARD = torch.ops.aten.sigmoid_backward.grad_input
LARGEST = float(np.finfo(np.float32).max)
SMALLEST = 2.0**-149  # above 0
_FLOAT, _BITS = struct.Struct("<f"), struct.Struct("<I")


@lru_cache(maxsize=4096)
def closed(low: float, high: float, dtype: torch.dtype = torch.float32) -> Limits:
    """Return limits for low <= u <= high."""
    kind = FLOATS[dtype]
    first, last = np.nextafter(kind(low), kind(-np.inf)), np.nextafter(kind(high), kind(np.inf))
    return float(first), float(last)


def half_open(low: float, high: float, dtype: torch.dtype = torch.float32) -> Limits:
    """Return limits for low < u <= high."""
    return low, closed(low, high, dtype)[1]


def above(low: float, high: float, dtype: torch.dtype = torch.float32) -> Limits:
    """Return limits for low < u."""
    del high, dtype
    return low, math.inf


def limits_before_division(limits: Limits, scale: float) -> Limits:
    """Return limits of x that decide exactly as those of u = x / scale do, all in float32.

    One of each limit and its neighbour inside is an integer, which a quotient half way between
    the two is rounded to.
    """
    first, last = limits
    return -_first_outside(*_half_way(-first), scale), _first_outside(*_half_way(last), scale)


@lru_cache(maxsize=4096)
def _half_way(limit: float) -> tuple[float, bool]:
    """Return what lies between a limit and the largest below it, and whether it is an integer."""
    if math.isinf(limit):
        return math.inf, False
    outside = np.float32(limit)
    inside = np.nextafter(outside, np.float32(-np.inf))
    return (float(outside) + float(inside)) / 2, float(outside).is_integer()


def _first_outside(
    half_way: float,
    whole: bool,  # noqa: FBT001  with half_way it is the pair that `_half_way` returns, unpacked
    scale: float,
) -> float:
    """Return the smallest x with x / scale at a limit or above, given what lies just below it."""
    edge = half_way * scale  # exact: 25 bits times 24
    if edge > LARGEST:
        return math.inf
    found = to_float32(edge)
    outside = found >= edge if whole else found > edge
    return found if outside else _next_above(found)


def _next_above(number: float) -> float:
    """Return the smallest float32 above a finite one, by its bits: numpy's takes far longer."""
    if number == 0:
        return SMALLEST
    bits: int = _BITS.unpack(_FLOAT.pack(number))[0]
    above: float = _FLOAT.unpack(_BITS.pack(bits + 1 if number > 0 else bits - 1))[0]
    return above


def stop_outside(grad: Tensor, u: Tensor, limits: Limits, out: Tensor) -> Tensor:
    """Write g * [first < u < last] to `out`, which may be `grad`."""
    return HARDTANH_BACKWARD(grad, u, *limits, grad_input=out)


@dataclass(frozen=True)
class Fast:
    """A fast form.

    Attributes:
        limits: of low, high and the dtype of u; None where no gradient is stopped.
        slope: (grad, u, low, high, out, *, parameters) writes slope(u) * grad to `out`, which may
            be `grad`, and may overwrite u. None where the slope is 1.
    """

    limits: Callable[[float, float, torch.dtype], Limits] | None
    slope: Callable[..., None] | None = None

    def __call__(self, grad: Tensor, u: Tensor, low: float, high: float, **params: float) -> Tensor:
        """Return the gradient with respect to u, which is overwritten."""
        out = torch.empty_like(u)
        if self.limits is not None:
            grad = stop_outside(grad, u, self.limits(low, high, u.dtype), out)
        if self.slope is not None:
            self.slope(grad, u, low, high, out, **params)
            return out
        return grad


def fast_form(estimator: Callable[..., Tensor]) -> Fast | None:
    """Return the fast form of an estimator with its parameters, or None where there is none."""
    params = {}
    if isinstance(estimator, partial):
        estimator, params = estimator.func, estimator.keywords
    found = _FORMS.get(estimator)
    if found is None or found.slope is None or not params:
        return found
    return Fast(found.limits, partial(found.slope, **params))


def _reverse_exponential(grad: Tensor, u: Tensor, low: float, high: float, out: Tensor) -> None:
    # clamped as far below as stopped: exp must not overflow there
    u.clamp_(min=low).sub_(low).mul_(-1 / (high - low)).exp_()
    torch.mul(grad, u, out=out)


def _log_tailed_relu(grad: Tensor, u: Tensor, low: float, high: float, out: Tensor) -> None:
    del low
    torch.div(grad, u.sub_(high - 1).clamp_(min=1), out=out)


def _hyperbolic_tangent(
    grad: Tensor, u: Tensor, low: float, high: float, out: Tensor, *, sharpness: float = 2.1667
) -> None:
    # |t| = ||u| - floor(|u|) - 1/2|, and the slope is even
    del low, high
    u.abs_().frac_().sub_(0.5).mul_(2 * sharpness).tanh_()
    TANH_BACKWARD(grad, u, grad_input=out)
    out.mul_(sharpness / math.tanh(sharpness))


def _stacked_sigmoid(
    grad: Tensor, u: Tensor, low: float, high: float, out: Tensor, *, sharpness: float = 4.0
) -> None:
    _hyperbolic_tangent(grad, u, low, high, out, sharpness=sharpness / 4)


def _sinusoidal(
    grad: Tensor, u: Tensor, low: float, high: float, out: Tensor, *, amplitude: float = 0.5
) -> None:
    # cos(2 pi t) = -cos(2 pi u)
    del low, high
    u.frac_().mul_(2 * math.pi).cos_()
    torch.addcmul(grad, grad, u, value=-amplitude, out=out)


def _triangular(
    grad: Tensor, u: Tensor, low: float, high: float, out: Tensor, *, height: float = 0.5
) -> None:
    # |t| = 1/2 - |f|
    _position_based(grad, u, low, high, out, slope=4 * height, epsilon=1 - height)


def _stable_qat(
    grad: Tensor, u: Tensor, low: float, high: float, out: Tensor, *, amplitude: float = 0.21
) -> None:
    # (1 - S) / (1 + S) = 2 / (1 + S) - 1
    del low, high
    u.sub_(u.round()).mul_(math.pi).cos_().mul_(math.sqrt(2) * math.pi * amplitude).add_(1)
    torch.neg(grad, out=out)
    out.addcdiv_(out, u, value=-2)


def _position_based(
    grad: Tensor,
    u: Tensor,
    low: float,
    high: float,
    out: Tensor,
    *,
    slope: float = 4.0,
    epsilon: float = 0.01,
) -> None:
    del low, high
    u.sub_(u.round()).abs_().mul_(slope).add_(epsilon)
    torch.mul(grad, u, out=out)


def _element_wise_gradient_scaling(
    grad: Tensor, u: Tensor, low: float, high: float, out: Tensor, *, delta: float = 0.1
) -> None:
    del low, high
    nearest = u.round()
    u.sub_(nearest)
    torch.addcmul(grad, torch.abs(grad, out=nearest), u, value=delta, out=out)


def _magnitude_aware(grad: Tensor, u: Tensor, low: float, high: float, out: Tensor) -> None:
    c = (high - low) / 2
    u.sub_((low + high) / 2).abs_().clamp_(min=c)
    torch.div(grad, u.div_(c), out=out)


def _trust(
    grad: Tensor, u: Tensor, low: float, high: float, out: Tensor, *, threshold: float = 0.5
) -> None:
    u.sub_(u.round().clamp_(low, high))
    stop_outside(grad, u, closed(-threshold, threshold, u.dtype), out)


def _hard_tanh(grad: Tensor, u: Tensor, low: float, high: float, out: Tensor) -> None:
    # fl(u - 1/2) is exactly v / 2, also where 2u - 1 is rounded
    del low, high
    stop_outside(grad, u.sub_(0.5), closed(-0.5, 0.5, u.dtype), out)


def _tanh(
    grad: Tensor, u: Tensor, low: float, high: float, out: Tensor, *, sharpness: float = 2.0
) -> None:
    del low, high
    u.sub_(0.5).mul_(2 * sharpness).tanh_()
    TANH_BACKWARD(grad, u, grad_input=out)
    out.mul_(sharpness)


def _sigmoid(grad: Tensor, u: Tensor, low: float, high: float, out: Tensor) -> None:
    del low, high
    u.mul_(2).sub_(1).sigmoid_()
    SIGMOID_BACKWARD(grad, u, grad_input=out)


def _approx_sign(grad: Tensor, u: Tensor, low: float, high: float, out: Tensor) -> None:
    del low, high
    torch.mul(grad, u.sub_(0.5).abs_().mul_(-4).add_(2).clamp_(min=0), out=out)


FAST: dict[str, Fast] = {
    "straight_through": Fast(closed),
    "identity": Fast(None),
    "relu": Fast(above),
    "clipped_relu": Fast(half_open),
    "reverse_exponential": Fast(above, _reverse_exponential),
    "log_tailed_relu": Fast(above, _log_tailed_relu),
    "hyperbolic_tangent": Fast(closed, _hyperbolic_tangent),
    "stacked_sigmoid": Fast(closed, _stacked_sigmoid),
    "sinusoidal": Fast(closed, _sinusoidal),
    "triangular": Fast(closed, _triangular),
    "stable_qat": Fast(closed, _stable_qat),
    "position_based": Fast(closed, _position_based),
    "element_wise_gradient_scaling": Fast(closed, _element_wise_gradient_scaling),
    "magnitude_aware": Fast(None, _magnitude_aware),
    "trust": Fast(None, _trust),
    "hard_tanh": Fast(None, _hard_tanh),
    "tanh": Fast(None, _tanh),
    "sigmoid": Fast(None, _sigmoid),
    "approx_sign": Fast(None, _approx_sign),
}
_FORMS = {ESTIMATORS[name]: fast for name, fast in FAST.items()}
