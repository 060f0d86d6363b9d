"""How well verdicts hold on simulated comparisons, as tables.

    python -m tests.comparison.simulation chance|chance_of_many|power|promises [SEED]

chance: how often arms that are the same are called different, and intervals hold, on 500 images;
chance_of_many: on 10,000. power: how often
planted effects are found. promises: how far detectable effects, the test of equality, seeds needed
and looks hold. The constants of
`statistics.spread` were chosen with other random numbers than the default ones here.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qtool.comparison.statistics.differences import half_widths, p_values_of
from qtool.comparison.statistics.equality import MARGIN
from qtool.comparison.statistics.looks import pocock_alpha
from qtool.comparison.statistics.power import detectable_effect, seeds_needed
from qtool.comparison.statistics.several import ALPHA, holm
from qtool.comparison.statistics.spread import spread_of
from qtool.console import say
from tests.comparison.simulated import Floats, Nature, chances, draw

COMPARISONS = 2_000
AT_ONCE = {500: 250, 10_000: 50}
MANY = 20_000
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


@dataclass(frozen=True)
class Simulated:
    """What comparisons of two arms show, each figure for each comparison.

    Attributes:
        shown: a winner is named.
        equal: they are shown to be equal within the margin.
    """

    shown: NDArray[np.bool_]
    equal: NDArray[np.bool_]


def simulated(
    nature: Nature,
    comparisons: int,
    seeds: int,
    random: np.random.Generator,
    *,
    effect: float = 0.0,
    margin: float = MARGIN,
) -> Simulated:
    """Return what comparisons of two arms show, of which one is better by an effect."""
    parts = list[tuple[NDArray[np.bool_], NDArray[np.bool_], Floats]]()
    size = min(comparisons, 10 * AT_ONCE[nature.images])
    for _ in range(comparisons // size):
        gaps = draw(nature, size, 2, seeds, random, effect=effect).gaps(1, slice(0, seeds))
        spread = spread_of(gaps)
        inside = np.abs(gaps.mean) + half_widths(gaps, spread, 2 * ALPHA) < margin
        parts.append((p_values_of(gaps, spread) <= ALPHA, inside))
    shown, equal = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Simulated(shown, equal)


def gap_std(nature: Nature) -> float:
    """Return the true standard deviation of the difference of one seed."""
    chance = chances(nature.hard)
    return float((2 * nature.ratio * (chance * (1 - chance)).sum()) ** 0.5) / nature.images


def looked_at(nature: Nature, looks: tuple[int, ...], alpha: float, seed: int) -> float:
    """Return how often arms that are the same are called different at one of several looks."""
    random, named = np.random.default_rng(seed), 0
    size, rounds = 10 * AT_ONCE[nature.images], MANY // (10 * AT_ONCE[nature.images])
    for _ in range(rounds):
        answers = draw(nature, size, 2, max(looks), random)
        gaps = [answers.gaps(1, slice(0, count)) for count in looks]
        p = np.array([p_values_of(each, spread_of(each)) for each in gaps])
        named += int((p <= alpha).any(0).sum())
    return named / (size * rounds)


def table_of_power(seed: int) -> None:
    """Print how often a planted effect of 2.6 standard deviations is found by 2 and 3 seeds."""
    random, nature = np.random.default_rng(seed), Nature(ratio=1.4)
    for seeds in (2, 3):
        effect = 2.6 * gap_std(nature)
        found = simulated(nature, MANY, seeds, random, effect=effect).shown.mean()
        say(f"2.6 sd, {name_of(nature)}, {seeds} seeds: found in {100 * found:.1f} %")


def table_of_promises(seed: int) -> None:
    """Print how far detectable effects, margins, seeds needed and looks hold."""
    random = np.random.default_rng(seed)
    for ratio in (1.4, 2.0):
        for images in AT_ONCE:
            nature = Nature(images, ratio)
            for seeds in (2, 3, 5, 10):
                std = gap_std(nature)
                effect = detectable_effect(std, seeds, std**2 / ratio)
                found = simulated(nature, MANY, seeds, random, effect=effect).shown.mean()
                margin = 3 * std / seeds**0.5
                wrong = simulated(nature, MANY, seeds, random, effect=margin, margin=margin)
                right = simulated(nature, MANY, seeds, random, margin=margin).equal.mean()
                say(
                    f"{name_of(nature)}, {seeds} seeds: what is to be found in 80 % is in "
                    f"{100 * found:.1f} %; equal within 3 standard errors is said in "
                    f"{100 * right:.1f} %, and in {100 * wrong.equal.mean():.1f} % at the margin"
                )
            std = gap_std(nature)
            for share in (1.0, 0.6):
                needed = seeds_needed(share * std, std, std**2 / ratio)
                assert needed is not None
                found = [
                    100 * simulated(nature, MANY, n, random, effect=share * std).shown.mean()
                    for n in (needed, needed - 1)
                ]
                say(
                    f"{name_of(nature)}: {share:g} sd takes {needed} seeds: found in "
                    f"{found[0]:.1f} %, and in {found[1]:.1f} % with one fewer"
                )
    for ratio in (1.4, 2.0, 5.0):
        for looks in ((3, 5, 10), (2, 3, 4, 5, 6)):
            nature = Nature(ratio=ratio)
            planned = looked_at(nature, looks, pocock_alpha(looks), seed)
            plain = looked_at(nature, looks, ALPHA, seed)
            say(
                f"looks {looks}, {name_of(nature)}: {100 * planned:.1f} % name a winner at "
                f"{pocock_alpha(looks):.4f} each, {100 * plain:.1f} % at .05"
            )


def name_of(nature: Nature) -> str:
    """Return a nature in words."""
    kind = "skewed" if nature.shape == "skewed" else "normal"
    if nature.collapses:
        kind = f"{100 * nature.collapses:g} % collapse"
    if nature.noisy is not None:
        kind = f"{'first' if nature.noisy == 0 else 'other'} arm 2.5 x noisier"
    return f"{nature.images:,} images, {kind}, s^2/s_img^2 {nature.ratio:g}"


def table_of_false_alarms(seed: int, images: int = 500) -> None:
    """Print a line for each nature, and what all cells come to."""
    seeds, others = tuple(range(2, MOST_SEEDS + 1)), tuple(range(1, MOST_OTHERS + 1))
    cells, coverage = [], []
    for nature in NATURES:
        one = replace(nature, images=images)
        named, held = false_alarms(one, COMPARISONS, seed, seeds=seeds, others=others)
        seed += 1
        cells.append(named)
        coverage.append(held)
        most = np.unravel_index(named.argmax(), named.shape)
        where = f"{seeds[most[0]]} seeds, {others[most[1]]} others"
        say(
            f"{name_of(one)}: {100 * named.mean():.1f} % name a winner, at most "
            f"{100 * named.max():.1f} % ({where}); intervals hold {100 * held.min():.1f} to "
            f"{100 * held.max():.1f} %"
        )
    found, covered = 100 * np.array(cells), 100 * np.array(coverage)
    say(
        f"{found.size:,} cells of {COMPARISONS:,}: mean {found.mean():.2f} %, largest "
        f"{found.max():.2f} %, over 6.5 % {np.sum(found > 6.5)}; intervals hold "
        f"{covered.min():.1f} to {covered.max():.1f} %, mean {covered.mean():.1f} %"
    )
    by_seeds = ", ".join(f"{most:.1f}" for most in found.max((0, 2)))
    say(f"largest by seeds, {seeds[0]} to {seeds[-1]}: {by_seeds} %")


TABLES = {
    "chance": table_of_false_alarms,
    "chance_of_many": partial(table_of_false_alarms, images=10_000),
    "power": table_of_power,
    "promises": table_of_promises,
}

if __name__ == "__main__":
    TABLES[sys.argv[1]](int(sys.argv[2]) if len(sys.argv) > 2 else 20_000)
