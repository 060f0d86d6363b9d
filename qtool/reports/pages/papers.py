"""The one figure of a comparison that a paper has room for."""

from qtool.reports.comparisons import Comparison, Equivalence
from qtool.reports.pages.comparison import costs_of, seed_rows
from qtool.reports.pages.costs import costs
from qtool.reports.pages.dots import seed_dots
from qtool.reports.pages.equivalence import rate_figures
from qtool.reports.pages.figures import Drawing


def figure_of(result: Comparison | Equivalence) -> Drawing:
    """Return the main figure of a comparison, and its size in pixels.

    All seeds with intervals; of runs and files accuracy against what they differ in, if they do; of
    an equivalence how far weights end apart, by learning rate.
    """
    if isinstance(result, Equivalence):
        return rate_figures(result)[0].drawing
    if result.kind == "runs":
        for unit, known in costs_of(result.arms):
            return costs(known, unit)
    return seed_dots(seed_rows(result), wide=True, margin=result.margin)
