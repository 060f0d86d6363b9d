"""The integer programme, against every choice there is."""

from itertools import product

import numpy as np
import pytest

from qtool.bits.choose import Option, choose, cost_of, least


def instance(seed: int) -> tuple[list[list[Option]], dict[str, float]]:
    """Return groups of random options, and what widths cost once."""
    draw = np.random.default_rng(seed)
    groups = [
        [
            Option(
                bits,
                float(draw.random()) * 4.0**-bits,
                float(draw.integers(1, 900) * bits),
                f"{bits}",
            )
            for bits in (2, 3, 4, 8)[: draw.integers(1, 5)]
        ]
        for _ in range(draw.integers(1, 6))
    ]
    return groups, {"2": float(draw.integers(0, 2000)), "3": float(draw.integers(0, 2000))}


@pytest.mark.parametrize("seed", range(12))
def test_no_choice_within_the_limit_is_better(seed: int) -> None:
    groups, shared = instance(seed)
    every = list(product(*(range(len(options)) for options in groups)))
    costs = [cost_of(groups, chosen, shared) for chosen in every]
    errors = [sum(g[k].error for g, k in zip(groups, chosen, strict=True)) for chosen in every]
    assert cost_of(groups, least(groups, shared), shared) == min(costs)
    assert choose(groups, min(costs) - 1, shared) is None
    for limit in np.quantile(costs, [0, 0.3, 0.7, 1]):
        found = choose(groups, limit, shared)
        assert found is not None
        assert cost_of(groups, found, shared) <= limit
        best = min(e for e, cost in zip(errors, costs, strict=True) if cost <= limit)
        error = sum(g[k].error for g, k in zip(groups, found, strict=True))
        assert error == pytest.approx(best, rel=1e-6, abs=1e-12)


def test_what_a_width_costs_once_is_counted_once_and_only_where_it_is_taken() -> None:
    groups = [[Option(2, 1.0, 10, "two"), Option(8, 0.0, 40)]] * 3
    assert cost_of(groups, [0, 0, 1], {"two": 100}) == 10 + 10 + 40 + 100
    assert least(groups, {"two": 100}) == [1, 1, 1]
    assert least(groups, {"two": 50}) == [0, 0, 0]
