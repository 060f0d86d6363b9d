"""Looking at a comparison more than once: a look at each number of seeds finds more by chance.

Reference: Pocock, 1977, Group sequential methods in the design and analysis of clinical trials,
Biometrika 64; the recursion is that of Armitage, McPherson and Rowe, 1969, J. R. Stat. Soc. A 132.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from qtool.comparison.statistics.roots import root_of_rising
from qtool.comparison.statistics.several import ALPHA

NODES = 101  # of the integral; 201 change the level of 5 looks by less than 1e-9


def chance_of_any(seeds: Sequence[int], alphas: Sequence[float]) -> float:
    """Return how often chance alone shows something at one look at least.

    The sum of the seeds' differences is a random walk, S_k ~ N(0, n_k): at look k something is
    shown where |S_k| > z(1 - alpha_k / 2) sqrt(n_k). The density of walks that showed nothing so
    far is carried from look to look.

    Args:
        seeds: how many at each look, in rising order.
        alphas: level of each look, two-sided.
    """
    from scipy.stats import norm

    weights, inside = np.ones(1), np.zeros(1)  # of the walks that are left, and where they are
    before = 0
    for n, alpha in zip(seeds, alphas, strict=True):
        limit = float(norm.isf(alpha / 2)) * n**0.5
        nodes, width = _nodes()
        places = limit * nodes
        step = float(n - before) ** 0.5
        moved = norm.pdf((places[:, None] - inside[None, :]) / step) / step
        weights = (moved @ weights) * width * limit
        inside, before = places, n
    return float(1 - weights.sum())


@lru_cache(maxsize=1)
def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Return places and widths of the integral over -1 to 1, each float64 [NODES]."""
    return np.polynomial.legendre.leggauss(NODES)


@lru_cache(maxsize=64)
def pocock_alpha(seeds: tuple[int, ...], alpha: float = ALPHA) -> float:
    """Return the level of each look at which chance shows something in `alpha` of all comparisons.

    Of looks at equal distances it is Pocock's: .0294 each for 2, .0221 for 3, .0158 for 5.

    Args:
        seeds: how many at each look, in rising order.
        alpha: of all looks together.
    """
    if len(seeds) == 1:
        return alpha

    def beyond(level: float) -> float:
        return chance_of_any(seeds, [level] * len(seeds)) - alpha

    return root_of_rising(beyond, alpha / len(seeds) / 2, alpha)
