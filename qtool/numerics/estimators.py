"""Gradient estimators: what the backward pass uses in place of d round(u) / du.

Each takes the incoming gradient, the unrounded steps u = x / scale + offset and the bounds
low <= u <= high in the same unit, and returns the gradient with respect to u, of u's shape.
The bounds are numbers, or tensors that broadcast over u. To add one, write a function here and
decorate it: its name is its name in recipes, its keyword-only arguments are its parameters.
"""

from collections.abc import Callable

from torch import Tensor

from qtool.registry import Registry

Bound = Tensor | float
Estimator = Callable[[Tensor, Tensor, Bound, Bound], Tensor]
ESTIMATORS: Registry[Callable[..., Tensor]] = Registry("estimator")


@ESTIMATORS.add
def straight_through(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Pass the gradient inside the grid and stop it outside.

        g_u = g * [low <= u <= high]

    Reference: Bengio et al., 2013, arXiv:1308.3432. The piecewise linear estimator (PWL) of
    arXiv:2405.05171 is the same function.
    """
    return grad * ((low <= u) & (u <= high))


@ESTIMATORS.add
def identity(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Pass every gradient, also where the value saturates.

        g_u = g

    Reference: Hinton, 2012; "identity STE" of Yin et al., 2019, arXiv:1903.05662.
    """
    del u, low, high
    return grad


@ESTIMATORS.add
def relu(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Pass the gradient above the lower bound.

        g_u = g * [u > low]

    Reference: "vanilla ReLU STE" of Yin et al., 2019, arXiv:1903.05662, at low = 0.
    """
    del high
    return grad * (u > low)


@ESTIMATORS.add
def clipped_relu(grad: Tensor, u: Tensor, low: Bound, high: Bound) -> Tensor:
    """Pass the gradient inside the grid, without its lower bound.

        g_u = g * [low < u <= high]

    Reference: "clipped ReLU STE" of Yin et al., 2019, arXiv:1903.05662, at low = 0.
    """
    return grad * ((low < u) & (u <= high))
