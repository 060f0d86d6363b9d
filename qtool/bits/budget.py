"""A budget, and the widths that cost no more: chosen by what was measured.

The least sum of errors, each layer alone at its width, is found by the integer programme of
`choose`; beside it stands the widest width for all layers that is within the budget. Both networks
are measured whole, and of those within the budget the one with the less error is taken. What only a
file tells, bytes and time, is in `by_file`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from qtool.bits.choose import Option, choose, cost_of, least
from qtool.bits.costs import LayerCost
from qtool.bits.sensitivity import Measured, Sensitivities, groups_of, measure
from qtool.bits.subject import Subject
from qtool.console import say
from qtool.errors import RecipeError
from qtool.problems import report
from qtool.reports.sensitivity import ChosenWidths, TriedWidths
from qtool.settings.budget import Budget
from qtool.settings.quantization import WIDTHS
from qtool.settings.tensors import WeightQuantization

SAME = 1e-12  # of a limit: what sums of floats may differ by
BEST = "least error"

Widths = dict[str, int]
CostOf = Callable[[LayerCost, WeightQuantization], tuple[float, str]]
"""Takes a layer and its settings at a width; returns its cost, and the name of what it shares."""


@dataclass(frozen=True)
class Priced:
    """What each group of layers may have, and what it costs.

    Attributes:
        groups: names of the layers of each.
        options: of each group.
        shared: name -> what is paid once.
    """

    groups: Sequence[Sequence[str]]
    options: Sequence[Sequence[Option]]
    shared: Mapping[str, float]

    def within(self, limit: float) -> Widths | None:
        """Return the widths of the least error within a limit, None where there are none."""
        found = choose(self.options, limit, self.shared)
        return None if found is None else self._named(found)

    def least(self) -> Widths:
        """Return the widths that cost least."""
        return self._named(least(self.options, self.shared))

    def of(self, widths: Mapping[str, int]) -> float:
        """Return what widths cost."""
        places = [
            next(k for k, one in enumerate(options) if one.bits == widths[group[0]])
            for group, options in zip(self.groups, self.options, strict=True)
        ]
        return cost_of(self.options, places, self.shared)

    def uniform(self) -> Iterator[tuple[int, Widths]]:
        """Yield each width that all layers may have which are free to, the widest first."""
        every = {one.bits for options in self.options for one in options if len(options) > 1}
        for bits in sorted(every, reverse=True):
            places = [
                0 if len(options) == 1 else [one.bits for one in options].index(bits)
                for options in self.options
                if len(options) == 1 or bits in [one.bits for one in options]
            ]
            if len(places) == len(self.options):
                yield bits, self._named(places)

    def _named(self, places: Sequence[int]) -> Widths:
        return {
            name: options[place].bits
            for group, options, place in zip(self.groups, self.options, places, strict=True)
            for name in group
        }


class Chooser:
    """What choices under a budget begin with, and how they end.

    Attributes:
        subject: recipe, data and network.
        settings: layer -> width -> of its weight at that width.
        trains: codes are to be trained, and may come to reach over all of their grids.
        tried: what was held against the budget.
    """

    def __init__(
        self,
        subject: Subject,
        source: str,
        *,
        trains: bool = False,
        measured: Sensitivities | None = None,
        widths: Sequence[int] = tuple(WIDTHS),
    ) -> None:
        """Take what is to be chosen for.

        Args:
            subject: recipe, data and network.
            source: of the recipe, for messages.
            trains: codes are to be trained.
            measured: what each width costs, alone; measured here where it is None.
            widths: that may be chosen.
        """
        self.subject, self.source, self.trains = subject, source, trains
        self.settings, self._measured = subject.widths(widths), measured
        self._judged: dict[tuple[int, ...], Measured] = {}
        self.tried: list[TriedWidths] = []

    @cached_property
    def free(self) -> list[str]:
        """The layers whose width may be chosen."""
        return [name for name in self.settings if name not in self.subject.said]

    @property
    def measured(self) -> Sensitivities:
        """What each width of each layer costs in error."""
        if self._measured is None:
            subject, chosen = self.subject, {name: self.settings[name] for name in self.free}
            images = f"{subject.shown.images} training images"
            say(f"measuring each width of {len(chosen)} layers on {images}")
            made = {} if self.trains else subject.weights_at(chosen)
            self._measured = measure(subject.model, subject.shown, chosen, ["alone"], made)
        return self._measured

    def refuse_nothing_free(self) -> None:
        """Check that there is anything to choose.

        Raises:
            RecipeError: If overrides say the width of every layer.
        """
        if not self.free:
            why = "overrides say the width of every layer, so that nothing is left to choose"
            raise report(self.source, [("quantization.budget", why)])

    def priced(self, cost: CostOf, *, measured: bool = True) -> Priced:
        """Return what each group may have, at the price that `cost` says.

        Args:
            cost: of a layer at a width.
            measured: by the errors that were measured; else all are 0, and nothing is measured.
        """
        groups = groups_of(self.subject.model, list(self.settings))
        options = [
            [
                self._option(group, bits, error, cost)
                for bits, error in self._errors(group, measured=measured).items()
            ]
            for group in groups
        ]
        return Priced(groups, options, {})

    def _errors(self, group: Sequence[str], *, measured: bool) -> dict[int, float]:
        """Return width -> error of a group of layers; where one's is said, there is no other."""
        said = [name for name in group if name in self.subject.said]
        if said:
            return {self.subject.base[said[0]].bits: 0.0}
        if not measured:
            return dict.fromkeys(self.settings[group[0]], 0.0)
        number = next(k for k, names in enumerate(self.measured.groups) if set(names) & set(group))
        alone = self.measured.alone
        return {bits: found.error for (n, bits), found in alone.items() if n == number}

    def _option(self, group: Sequence[str], bits: int, error: float, cost: CostOf) -> Option:
        found = [cost(self.subject.cost.layers[name], self.at(name, bits)) for name in group]
        shares = next((name for _, name in found if name), "")
        return Option(bits, error, sum(paid for paid, _ in found), shares)

    def at(self, name: str, bits: int) -> WeightQuantization:
        """Return the settings of a layer's weight at a width."""
        return self.settings[name].get(bits) or self.subject.base[name]

    def by_sum(self, budget: Budget, cost: CostOf, rest: float, unit: str) -> ChosenWidths:
        """Return the choice under a budget of what is known exactly: a sum over layers.

        Raises:
            RecipeError: If no choice is within it; says the least possible.
        """
        limit, possible = budget.limit - rest, self.priced(cost, measured=False)
        if possible.within(limit) is None:
            raise self.out_of_reach(budget, unit.format(possible.of(possible.least()) + rest))
        priced = self.priced(cost)
        found = priced.within(limit)
        assert found is not None  # the same costs as before
        uniform = [
            (f"uniform {bits} bits", widths)
            for bits, widths in priced.uniform()
            if priced.of(widths) <= limit * (1 + SAME)
        ]
        candidates = [(BEST, found), *uniform[:1]]
        for by, widths in candidates:
            self.note(budget, by, priced.of(widths) + rest, self.judged(widths))
        best = min((widths for _, widths in candidates), key=lambda w: self.judged(w).error)
        return self.result(budget, best, priced.of(best) + rest)

    def recipe_at(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Return the widths that an override has to say."""
        return {name: bits for name, bits in widths.items() if name in self.free}

    def judged(self, widths: Mapping[str, int]) -> Measured:
        """Return how the network does with these widths, each once measured."""
        key = tuple(widths[name] for name in self.settings)
        if key not in self._judged:
            recipe = self.subject.with_widths(self.recipe_at(widths))
            self._judged[key] = self.subject.judged(self.subject.quantized(recipe))
        return self._judged[key]

    def note(self, budget: Budget, by: str, reached: float, how: Measured | None = None) -> None:
        """Keep what was held against a budget."""
        measured = {} if how is None else {"loss": how.loss, "error": how.error}
        within = reached <= budget.limit * (1 + SAME)
        said = {"by": by, "reached": reached, "within": within, **measured}
        self.tried.append(TriedWidths.model_validate(said))

    def out_of_reach(self, budget: Budget, cheapest: str) -> RecipeError:
        """Return the error that says the least possible."""
        said = ", with the widths that overrides say" if self.subject.said else ""
        asked = getattr(budget, budget.kind)
        why = f"{asked} is out of reach; the least possible is {cheapest}{said}"
        return report(self.source, [(f"quantization.budget.{budget.kind}", why)])

    def result(
        self,
        budget: Budget,
        widths: Mapping[str, int],
        reached: float,
        **more: int,
    ) -> ChosenWidths:
        """Return what there is to say of a choice."""
        cost, how = self.subject.cost, self.judged(widths)
        return ChosenWidths(
            budget=budget.asked,
            limit=budget.limit,
            reached=reached,
            bits_mean=cost.mean_bits(widths),
            bit_operations=cost.bit_operations(widths),
            loss=how.loss,
            error=how.error,
            widths=dict(widths),
            overrides=self.subject.overrides(self.recipe_at(widths)),
            tried=self.tried,
            **more,
        )
