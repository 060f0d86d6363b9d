"""The rounding and its backward pass as compiled kernels: each tensor is read once.

Only these are compiled, not the model: seconds instead of half a minute. Kernels see tensors as
[rows, values] in memory order, one row for each scale, and any number of them, so that all layers
share the kernels. They compute in float32 whatever the type of x.
"""

import itertools
from collections.abc import Callable
from functools import cache, partial
from types import FunctionType
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from qtool.console import say
from qtool.numerics.estimators import Estimator, straight_through
from qtool.numerics.grid import round_to_steps
from qtool.numerics.roundings import Rounding, ceil, half_to_even

P = ParamSpec("P")
R = TypeVar("R")
Params = tuple[tuple[str, object], ...]  # an estimator's parameters by name
Gradients = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]
_numbers = itertools.count()
_failures: list[str] = []


def can_compile(rounding: Rounding, tensor: Tensor) -> bool:
    """Tell whether there are kernels for a rounding and for a tensor's layout, and a compiler."""
    if _failures or rounding not in (half_to_even, ceil) or not tensor.numel():
        return False
    if tensor.is_contiguous():
        return True
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def give_up(error: Exception) -> None:
    """Go on without kernels after a failure to compile one, and say so, once."""
    if not _failures:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        _failures.append(reason)
        say(f"note: going on without compiled kernels, which this machine cannot make: {reason}")


def forward(
    x: Tensor, scale: Tensor, low: float, high: float, *, offset: float, rounding: Rounding
) -> Tensor:
    """Return x_hat, of x's shape, type and layout."""
    column = scale.reshape(-1, 1)
    kernel = _forward_kernel(low, high, offset, rounding)
    return kernel(_rows(x, len(column)), column).as_strided(x.shape, x.stride())


def backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    estimator: Estimator,
    *,
    bounds: tuple[float, float],
    offset: float,
    rule: str | None,
    rounding: Rounding,
    top: tuple[float, float] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of x, and the sums that a scale learns by, shaped as the scale.

    The sums are <g, x_hat> - <inner, x>, or for the rule clip <g - inner, x_hat>, over s; None
    where `rule` is None because the scale is not learned. For `top` see Backward.
    """
    if grad.stride() != x.stride():
        grad = torch.empty_like(x).copy_(grad)
    column = scale.reshape(-1, 1)
    params: Params = ()
    if isinstance(estimator, partial):
        estimator, params = estimator.func, tuple(sorted(estimator.keywords.items()))
    kernel = _backward_kernel(
        estimator, params, bounds, offset=offset, rule=rule, rounding=rounding, top=top
    )
    grad_x, sums = kernel(_rows(grad, len(column)), _rows(x, len(column)), column)
    return grad_x.as_strided(x.shape, x.stride()), None if sums is None else sums.reshape_as(scale)


def _rows(tensor: Tensor, rows: int) -> Tensor:
    """Return a dense tensor's memory as [rows, values], without the marks of a view.

    A view would carry its base into the compiler's guards, which then fail for every new shape.
    """
    count = tensor.numel() // rows
    plain = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    start = tensor.storage_offset()
    return plain.set_(tensor.detach().untyped_storage(), start, (rows, count), (count, 1))


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function under a code object of its own: each has its own budget of recompiles."""
    assert isinstance(function, FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    own = FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)
    return torch.compile(own, dynamic=True, fullgraph=True)


@cache
def _forward_kernel(
    low: float, high: float, offset: float, rounding: Rounding
) -> Callable[[Tensor, Tensor], Tensor]:
    def round_to_grid(x: Tensor, scale: Tensor) -> Tensor:
        q = round_to_steps(x.float(), scale, low, high, offset, rounding)
        return ((q - offset) * scale).to(x.dtype)

    return _compiled(round_to_grid)


@cache
def _backward_kernel(
    estimator: Estimator,
    params: Params,
    bounds: tuple[float, float],
    *,
    offset: float,
    rule: str | None,
    rounding: Rounding,
    top: tuple[float, float] | None,
) -> Gradients:
    (low, high), given = bounds, dict(params)

    def gradients(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor | None]:
        g = grad.float()
        u = x.float() / scale + offset
        g_u = estimator(g, u, low, high, **given)
        if rule is None:
            return g_u.to(x.dtype), None
        inner = g_u if rule == "chain_rule" else straight_through(g, u, low, high)
        q = round_to_steps(x.float(), scale, low, high, offset, rounding) - offset
        products = (g - inner) * q if rule == "clip" else g * q - inner * (u - offset)
        if top is not None:
            products = torch.where((u > high) & (scale * top[1] >= top[0]), 0.0, products)
        return g_u.to(x.dtype), products.sum(1)

    return _compiled(gradients)
