"""Widths by an integer programme: the least error whose costs stay within a limit.

    minimise    sum over layers l, widths b of   error[l, b] x[l, b]
    subject to  sum over b of x[l, b] = 1                     for each layer
                sum of cost[l, b] x[l, b] + sum over s of shared[s] y[s] <= limit
                x[l, b] <= y[s]                               where the option shares the cost s
                x, y in {0, 1}

A cost that is shared is paid once by all options of its name, as the table is that unpacks codes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAME = 1e-9  # of the limit: what sums of floats may differ by


@dataclass(frozen=True)
class Option:
    """A width that a layer, or a group that must share one, may have.

    Attributes:
        bits: the width.
        error: what it adds to the network's error.
        cost: what it adds to what is limited.
        shares: name of a cost that all options of this name pay together; "" for none.
    """

    bits: int
    error: float
    cost: float
    shares: str = ""


def cost_of(
    groups: Sequence[Sequence[Option]], chosen: Sequence[int], shared: Mapping[str, float]
) -> float:
    """Return what a choice costs; `chosen` is the place of each group's option."""
    taken = [options[place] for options, place in zip(groups, chosen, strict=True)]
    return sum(one.cost for one in taken) + sum(
        shared.get(name, 0.0) for name in {one.shares for one in taken}
    )


def choose(
    groups: Sequence[Sequence[Option]], limit: float, shared: Mapping[str, float] | None = None
) -> list[int] | None:
    """Return the place of the option of each group, or None where no choice is within the limit.

    Args:
        groups: each has one option or more.
        limit: of the costs of all groups together.
        shared: name -> what it costs once, where any option of that name is taken.
    """
    found = _solve(groups, [[one.error for one in options] for options in groups], limit, shared)
    if found is None or cost_of(groups, found, shared or {}) > limit + SAME * abs(limit):
        return None
    return found


def least(
    groups: Sequence[Sequence[Option]], shared: Mapping[str, float] | None = None
) -> list[int]:
    """Return the place of the option of each group in the choice that costs least."""
    found = _solve(groups, None, None, shared)
    assert found is not None  # there is no limit
    return found


def _solve(
    groups: Sequence[Sequence[Option]],
    errors: Sequence[Sequence[float]] | None,
    limit: float | None,
    shared: Mapping[str, float] | None,
) -> list[int] | None:
    """Return the choice of the least errors within a limit; without errors, of the least cost."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # takes half a second

    once = {name: cost for name, cost in (shared or {}).items() if cost}
    flat = [one for options in groups for one in options]
    count, names = len(flat), sorted(once)
    costs = np.array([*(one.cost for one in flat), *(once[name] for name in names)])
    unit = max(1e-300, float(np.abs(costs).max()))  # the solver's tolerances are absolute
    aims = np.zeros(count + len(names))
    if errors is None:
        aims[:] = costs / unit
    else:
        given = np.array([error for each in errors for error in each])
        aims[:count] = given / max(1e-300, float(np.abs(given).max()))
    constraints = [LinearConstraint(_one_of_each(groups, len(aims)), 1, 1)]
    if limit is not None:
        constraints.append(LinearConstraint(costs[None] / unit, -np.inf, limit / unit))
    if names:
        constraints.append(LinearConstraint(_pays_once(flat, names), -np.inf, 0))
    solved = milp(
        aims,
        constraints=constraints,
        integrality=np.ones(len(aims)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        return None
    taken, found, first = np.asarray(solved.x)[:count], list[int](), 0
    for options in groups:
        found.append(int(taken[first : first + len(options)].argmax()))
        first += len(options)
    return found


def _one_of_each(groups: Sequence[Sequence[Option]], variables: int) -> NDArray[np.float64]:
    """Return rows that sum the options of each group."""
    rows, first = np.zeros((len(groups), variables)), 0
    for row, options in zip(rows, groups, strict=True):
        row[first : first + len(options)] = 1
        first += len(options)
    return rows


def _pays_once(flat: Sequence[Option], names: Sequence[str]) -> NDArray[np.float64]:
    """Return rows x - y, at most 0, of every option that shares a cost."""
    rows = [np.zeros(len(flat) + len(names))]
    for place, one in enumerate(flat):
        if one.shares in names:
            row = np.zeros(len(flat) + len(names))
            row[place], row[len(flat) + names.index(one.shares)] = 1, -1
            rows.append(row)
    return np.array(rows)
