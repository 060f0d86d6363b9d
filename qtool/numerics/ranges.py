"""Range rules: from a tensor's values to the scale of its grid.

Each takes `rows` [R, K], one row for each scale, and a grid, and returns the scales [R], all
positive. To add one, write a function here and decorate it: its name is its name in recipes, its
keyword-only arguments are its parameters. What is true of it beside its scale, such as that the
scale is learned or for weights only, stands in the decorator: see `RangeFacts`. Those that weigh
also take `weights` [K], how many values each of a row stands for where that is a sample.
"""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from qtool.numerics.grid import IntegerGrid
from qtool.numerics.half_normal import Fit, normal_scale
from qtool.numerics.range_facts import RangeFacts
from qtool.numerics.scale_search import alternated, best_of
from qtool.numerics.scale_search import refine_scale as refine_scale  # of ppq, for who has a scale
from qtool.numerics.scale_search import start_of_zeros as start_of_zeros
from qtool.numerics.scales import LARGEST_SCALE as LARGEST_SCALE  # public here, as the next two
from qtool.numerics.scales import SMALLEST_SCALE as SMALLEST_SCALE
from qtool.numerics.scales import GivenScale, above_floor, min_max_to_scale
from qtool.numerics.scales import min_to_zero_point as min_to_zero_point
from qtool.numerics.weighed import mean_of, quantile_of
from qtool.registry import Registry

RANGES = Registry[Callable[..., Tensor]]("range").with_facts(RangeFacts)
DEFAULT = "auto"  # where a recipe does not say
TRAINED, UNTRAINED = "learned", "calibrated"  # what that is in training, and where there is none
FOUND = "mse"  # of an image where the range is open: no scale that learns is worth its gradient
# what a message recommends where another range does not fit
RECOMMENDED = {
    "weights": ("absmax", "learned"),
    "activations": ("learned", "ema_min_max"),
    "blend": ("absmax", "mse"),
}
# of extremes, as they are and as a moving average; and a number that is given
EXTREMES, FOLLOWED_EXTREMES, GIVEN = "min_max", "ema_min_max", "fixed"
TRIAL = 3  # iterations of ppq after which one start is chosen


def _fixed(rows: Tensor, scale: float) -> Tensor:
    """Return one scale for all rows."""
    return above_floor(rows.new_full((len(rows),), scale))


@RANGES.add
def absmax(rows: Tensor, grid: IntegerGrid) -> Tensor:
    """Put the outermost level at the largest absolute value: nothing saturates.

    s = max|x| / high    (max|x| / (high - 1/2) on mid_rise)
    """
    return above_floor(grid.bound_to_scale(rows.abs().amax(1)))


@RANGES.add(zero_point=True)
def min_max(rows: Tensor, grid: IntegerGrid) -> Tensor:
    """Span the smallest and the largest value, and zero.

    s = max(|min|, |max|) / high, and on the asymmetric grid s = (max - min) / (2^b - 1)
    """
    return min_max_to_scale(rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0), grid)


@RANGES.add(costs="sort", weighs=True)
def percentile(
    rows: Tensor,
    grid: IntegerGrid,
    weights: Tensor | None = None,
    *,
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.9,
) -> Tensor:
    """Let the largest values saturate: put the outermost level at a percentile of |x|.

    s = m / high    (m / (high - 1/2) on mid_rise),  m interpolated between its two neighbours
    """
    if weights is not None:
        return above_floor(grid.bound_to_scale(quantile_of(rows.abs(), weights, percentile / 100)))
    position = percentile / 100 * (rows.shape[1] - 1)
    below = math.floor(position)
    # torch.quantile refuses rows of more than 16 million values
    largest = rows.abs().topk(rows.shape[1] - below, dim=1).values
    lower, upper = largest[:, -1], largest[:, -2:][:, 0]
    return above_floor(grid.bound_to_scale(torch.lerp(lower, upper, position - below)))


@RANGES.add(side="activations", follows=True, zero_point=True)
def ema_min_max(
    rows: Tensor,
    grid: IntegerGrid,
    *,
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.99,
    every: Annotated[int, Field(ge=1)] = 8,
) -> Tensor:
    """Follow the smallest and largest value of batches by an exponential moving average.

    At every k-th training step, k = `every`, m <- d^k m + (1 - d^k) batch's, d = `decay`; s as
    min_max has it. This function turns extremes into a scale; the quantizer of activations looks
    at the batches and averages. To look at each would cost two passes over every activation.

    Reference: Jacob et al., 2018, arXiv:1712.05877.
    """
    del decay, every
    return min_max(rows, grid)


@RANGES.add(costs="search", weighs=True)
def mse(
    rows: Tensor,
    grid: IntegerGrid,
    weights: Tensor | None = None,
    *,
    candidates: Annotated[int, Field(ge=2, le=1000)] = 80,
) -> Tensor:
    """Search the scale with the smallest mean squared rounding error, on the grid itself.

    s = argmin_k mean((x - x_hat(s_k))^2),  s_k = k / candidates * scale of absmax
    """
    largest = absmax(rows, grid)
    scales = (above_floor(largest * (k / candidates)) for k in range(1, candidates + 1))
    return best_of(rows, scales, grid, weights)


@RANGES.add(costs="search", weighs=True, zero_point=True, open=True)
def calibrated(rows: Tensor, grid: IntegerGrid, weights: Tensor | None = None) -> Tensor:
    """Begin as `mse` does, with fewer candidates; post-training methods then go by outputs.

        s = argmin_k mean((x - x_hat(s_k))^2),  s_k = k / 20 * scale of absmax, then k / 100 around

    On the asymmetric grid s is min_max's. This is `auto` where nothing is trained.
    """
    if grid.kind == "asymmetric":
        return min_max(rows, grid)
    coarse, step = mse(rows, grid, weights, candidates=20), absmax(rows, grid) / 100
    around = (above_floor(coarse + step * k) for k in (0, -4, -3, -2, -1, 1, 2, 3, 4))
    return best_of(rows, around, grid, weights)


@RANGES.add(costs="search", refines=True, weighs=True)
def ppq(
    rows: Tensor,
    grid: IntegerGrid,
    weights: Tensor | None = None,
    *,
    iterations: Annotated[int, Field(ge=1, le=1000)] = 50,
    starts: Annotated[int, Field(ge=1, le=100)] = 8,
) -> Tensor:
    """Alternate between rounding to the grid and the scale that fits the rounded values best.

        q <- clamp(round(x / s + o)),  s <- <x, q - o> / <q - o, q - o>

    The error never grows, but it may stop at a local minimum. So the search begins at k / starts of
    absmax's scale for k = starts .. 1, the first of which alone is the paper's. After three
    iterations each row goes on from the best of the others, too, and keeps the better outcome.

    Reference: Liu and Mattina, 2019, arXiv:1903.01061.
    """
    largest = absmax(rows, grid)
    x = rows / largest.unsqueeze(1)  # of the size of the grid, so that no square overflows
    first = torch.ones_like(largest)
    found = [alternated(x, first, grid, iterations, weights)]
    if grid.kind != "mid_rise" or grid.bits > 1:  # a sign does not depend on the scale
        shares = [k / starts for k in range(starts - 1, 0, -1)]
        few = min(TRIAL, iterations)
        tried = [alternated(x, share * first, grid, few, weights) for share in shares]
        if tried:
            best = best_of(x, tried, grid, weights)
            found.append(alternated(x, best, grid, iterations, weights))
    return above_floor(largest * best_of(x, found, grid, weights))


@RANGES.add(side="activations", given=True, unsigned=True)
def half_normal(rows: Tensor, grid: IntegerGrid, *, fit: Fit = "published") -> Tensor:
    """Take the scale for a quantized ReLU of N(0, 1), whatever the values are.

        s = argmin E (x - Q(x))^2,  x ~ N(0, 1) given x > 0

    `round` and `ceil` say how Q rounds. `published` takes the authors' constants at 1, 2 and 4
    bits, which fit a Q that rounds, and is `round` elsewhere. A grid with negative integers gets
    the same for all of N(0, 1).

    Reference: Yin et al., 2019, arXiv:1903.05662.
    """
    return _fixed(rows, normal_scale(grid, fit))


@RANGES.add(weighs=True)
def mean_abs(rows: Tensor, grid: IntegerGrid, weights: Tensor | None = None) -> Tensor:
    """Put the first level above zero at the mean of the absolute values.

        s = mean|x|    (2 mean|x| on mid_rise, so that at 1 bit the levels are +-mean|x|)

    Reference: Rastegari et al., 2016, arXiv:1603.05279 (XNOR-Net); signs without a scale are those
    of BinaryConnect, Courbariaux et al., 2015, arXiv:1511.00363.
    """
    return above_floor(mean_of(rows.abs(), weights) / (1 - grid.offset))


@RANGES.add(learns="scale", zero_point=True, weighs=True)
def learned(rows: Tensor, grid: IntegerGrid, weights: Tensor | None = None) -> Tensor:
    """Train the scale with the weights, from this start (LSQ).

        s = 2 mean|x| / sqrt(high)

    The gradient is scaled by 1 / sqrt(N high), with N the values that share the scale. On the
    asymmetric grid the offset is learned too (LSQ+), and the scale starts as min_max has it.

    Reference: Esser et al., 2020, arXiv:1902.08153; Bhalgat et al., 2020, arXiv:2004.09576.
    """
    if grid.kind == "asymmetric":
        return min_max(rows, grid)
    return above_floor(2 * mean_of(rows.abs(), weights) / grid.qmax**0.5)


@RANGES.add(learns="scale", zero_point=True, weighs=True)
def auto(rows: Tensor, grid: IntegerGrid, weights: Tensor | None = None) -> Tensor:
    """Be `learned` in training, but `mse` of an image; where nothing is trained, `calibrated`.

    s = 2 mean|x| / sqrt(high) in training

    Of an image only with `place: every_value`, and not on the asymmetric grid.
    """
    return learned(rows, grid, weights)


@RANGES.add(side="activations", learns="clip")
def pact(rows: Tensor, grid: IntegerGrid, *, l2: Annotated[float, Field(ge=0)] = 1e-4) -> Tensor:
    """Train the clip a, the largest level, from the largest absolute value.

        s = a / high,  da = sum of g over the saturated values + l2 * a

    This function sets the start; the quantizer trains the clip.

    Reference: Choi et al., 2018, arXiv:1805.06085.
    """
    del l2
    return absmax(rows, grid)


@RANGES.add(squashes=True, weighs=True)
def dorefa(rows: Tensor, grid: IntegerGrid, weights: Tensor | None = None) -> Tensor:
    """Put the outermost level at 1, where DoReFa's transforms put the largest value.

        s = 1 / high,  2 mean|x| on the 1-bit mid_rise grid

    The quantizer hands weights over as tanh(w) / max|tanh w|; activations saturate at 0 and 1.

    Reference: Zhou et al., 2016, arXiv:1606.06160.
    """
    if grid.kind == "mid_rise" and grid.bits == 1:
        return mean_abs(rows, grid, weights)
    return _fixed(rows, 1 / (grid.qmax - grid.offset))


@RANGES.add(side="weights", given=True, squashes=True, interval=True)
def qil(
    rows: Tensor, grid: IntegerGrid, *, gamma: Annotated[float, Field(gt=0, le=10)] = 1.0
) -> Tensor:
    """Learn the interval of |w| that is rounded: below it weights are 0, above it at the end.

        s = 1 / high, of sign(w) clip((|w| - c + d) / (2 d), 0, 1)^gamma

    Center c and distance d of each tensor are learned, both from max|w| / 2.

    Reference: Jung et al., 2019, arXiv:1808.05779.
    """
    del gamma
    return _fixed(rows, 1 / grid.qmax)


@RANGES.add(given=True)
def fixed(rows: Tensor, grid: IntegerGrid, *, scale: GivenScale) -> Tensor:
    """Take the scale that the recipe gives.

    s = scale
    """
    del grid
    return _fixed(rows, scale)


@RANGES.add(side="weights", given=True)
def he_uniform(
    rows: Tensor, grid: IntegerGrid, *, fan_in: Annotated[int, Field(ge=1)] | None = None
) -> Tensor:
    """Put the outermost level at the bound that the weights are drawn within at first.

        m = sqrt(6 / fan_in),  s = m / (high - 1/2) on mid_rise, m / high elsewhere

    Without a `fan_in` it is K, as it is where each output channel has its row.

    Reference: Schoenbauer et al., 2024, arXiv:2405.05171.
    """
    bound = math.sqrt(6 / (fan_in or rows.shape[1]))
    return _fixed(rows, bound / (grid.qmax - grid.offset))
