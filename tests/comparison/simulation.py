"""How well verdicts hold on simulated comparisons, as tables.

    python -m tests.comparison.simulation [SEED]

prints how often arms that are the same are called different. The constants of
`statistics.spread` were chosen with other random numbers than the default ones here.
"""

import sys
from dataclasses import replace

import numpy as np

from qtool.comparison.statistics.differences import half_widths, p_values_of
from qtool.comparison.statistics.several import holm
from qtool.comparison.statistics.spread import spread_of
from qtool.console import say
from tests.comparison.simulated import Floats, Nature, draw

COMPARISONS = 2_000
AT_ONCE = {500: 250, 10_000: 50}
MOST_SEEDS, MOST_OTHERS = 10, 9
RATIOS = (0.5, 1.0, 1.4, 2.5, 3.2, 5.0)
NATURES = (
    *(Nature(ratio=ratio) for ratio in RATIOS),
    *(Nature(ratio=ratio, shape="skewed") for ratio in RATIOS),
    *(Nature(ratio=ratio, collapses=0.1) for ratio in RATIOS),
    *(Nature(ratio=ratio, noisy=0) for ratio in RATIOS if ratio >= 2),
    *(Nature(ratio=ratio, noisy=1) for ratio in RATIOS if ratio >= 2),
)


def false_alarms(
    nature: Nature, comparisons: int, seed: int, *, seeds: tuple[int, ...], others: tuple[int, ...]
) -> tuple[Floats, Floats]:
    """Return how often arms that are the same are called different, and how often intervals hold.

    Returns:
        Shares [seeds, others] of comparisons that name a winner, and shares [seeds] of the plain
        95 % intervals of the first other arm that hold the truth.
    """
    random = np.random.default_rng(seed)
    named = np.zeros((len(seeds), len(others)))
    held = np.zeros(len(seeds))
    size = min(comparisons, AT_ONCE[nature.images])
    for _ in range(comparisons // size):
        answers = draw(nature, size, max(others) + 1, max(seeds), random)
        for row, n in enumerate(seeds):
            gaps = [answers.gaps(arm, slice(0, n)) for arm in range(1, max(others) + 1)]
            spreads = [spread_of(each) for each in gaps]
            held[row] += (np.abs(gaps[0].mean) <= half_widths(gaps[0], spreads[0], 0.05)).sum()
            p = np.array([p_values_of(g, s) for g, s in zip(gaps, spreads, strict=True)])
            for column, count in enumerate(others):
                tests = p[:count].T.tolist()
                named[row, column] += sum(any(one.shown for one in holm(test)) for test in tests)
    total = comparisons // size * size
    return named / total, held / total


def name_of(nature: Nature) -> str:
    """Return a nature in words."""
    kind = "skewed" if nature.shape == "skewed" else "normal"
    if nature.collapses:
        kind = f"{100 * nature.collapses:g} % collapse"
    if nature.noisy is not None:
        kind = f"{'first' if nature.noisy == 0 else 'other'} arm 2.5 x noisier"
    return f"{nature.images:,} images, {kind}, s^2/s_img^2 {nature.ratio:g}"


def table_of_false_alarms(seed: int) -> None:
    """Print a line for each nature, and what all cells come to."""
    seeds, others = tuple(range(2, MOST_SEEDS + 1)), tuple(range(1, MOST_OTHERS + 1))
    cells, coverage = [], []
    for images in AT_ONCE:
        for nature in NATURES:
            one = replace(nature, images=images)
            named, held = false_alarms(one, COMPARISONS, seed, seeds=seeds, others=others)
            seed += 1
            cells.append(named)
            coverage.append(held)
            say(
                f"{name_of(one)}: {100 * named.mean():.1f} % name a winner, at most "
                f"{100 * named.max():.1f} %; intervals hold {100 * held.min():.1f} to "
                f"{100 * held.max():.1f} %",
                on_stdout=True,
            )
    found, covered = 100 * np.array(cells), 100 * np.array(coverage)
    say(
        f"{found.size:,} cells of {COMPARISONS:,}: mean {found.mean():.2f} %, largest "
        f"{found.max():.2f} %, over 6.5 % {np.sum(found > 6.5)}; intervals hold "
        f"{covered.min():.1f} to {covered.max():.1f} %, mean {covered.mean():.1f} %",
        on_stdout=True,
    )


if __name__ == "__main__":
    table_of_false_alarms(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
