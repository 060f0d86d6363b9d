"""The outcomes of trials, judged: arms, differences, verdict, and every look at them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qtool.comparison.execution.trials import Kind, Outcome, Outcomes, Trial, of_trials
from qtool.comparison.execution.unfinished import looks_of
from qtool.comparison.statistics.differences import (
    Reached,
    differences_from_first,
    mean_and_std,
)
from qtool.comparison.statistics.equality import MARGIN
from qtool.comparison.statistics.looks import chance_of_any, pocock_alpha
from qtool.comparison.statistics.several import ALPHA
from qtool.comparison.statistics.verdicts import is_decided, verdict
from qtool.console import warn
from qtool.errors import InputError
from qtool.reports.comparisons import Arm, Comparison, Difference, Look
from qtool.runs.kept.answers import Answers, read_answers


@dataclass(frozen=True)
class Judging:
    """How arms are judged.

    Attributes:
        margin: accuracies that lie no further apart count as equal, 0..1.
        looks: numbers of seeds after which the comparison is looked at, rising; () for one look,
            at the end.
    """

    margin: float = MARGIN
    looks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check both.

        Raises:
            InputError: If there is no such margin, or looks do not rise from 2 seeds on.
        """
        if not 0 < self.margin < 1:
            given = f"{100 * self.margin:g}"
            raise InputError(f"--margin {given}: give points of accuracy, more than 0, up to 100")
        rising = list(self.looks) == sorted(set(self.looks))
        if not rising or (self.looks and self.looks[0] < 2):
            given = ",".join(map(str, self.looks))
            raise InputError(f"--looks {given}: give rising numbers of seeds from 2 on, as 3,5,10")

    @property
    def alpha(self) -> float:
        """Return how often chance alone may name a winner at each look."""
        return pocock_alpha(self.looks) if self.looks else ALPHA


@dataclass(frozen=True)
class Judged:
    """What trials show.

    Attributes:
        arms: in their order.
        differences: of the others from the first.
        without_answers: finished trials of which only the accuracy is known.
    """

    arms: list[Arm]
    differences: list[Difference]
    without_answers: list[str]


def judge(outcomes: Outcomes, *, margin: float = MARGIN, alpha: float = ALPHA) -> Judged:
    """Return what each arm reached, and how the others differ from the first.

    Args:
        outcomes: of the arms.
        margin: what counts as equal.
        alpha: how often chance alone may name a winner.
    """
    arms = [_arm(name, done) for name, done in outcomes.items()]
    found = {name: [_answers(outcome) for outcome in done] for name, done in outcomes.items()}
    counted = Counter(each.images for own in found.values() for each in own if each is not None)
    images = counted.most_common(1)[0][0] if counted else ""
    reached, without = list[Reached](), list[str]()
    for arm in arms:
        same = [a if a is not None and a.images == images else None for a in found[arm.name]]
        right = [None if each is None else each.right for each in same]
        reached.append(Reached(arm.name, arm.values, right))
        without += [
            str(outcome.trial)
            for outcome, answers in zip(outcomes[arm.name], same, strict=True)
            if answers is None and outcome.accuracy is not None
        ]
    return Judged(arms, differences_from_first(reached, margin=margin, alpha=alpha), without)


def _arm(name: str, outcomes: Sequence[Outcome]) -> Arm:
    values = [outcome.accuracy for outcome in outcomes]
    mean, spread = mean_and_std([value for value in values if value is not None])
    failed = sum(not outcome.finished for outcome in outcomes)
    return Arm(name=name, values=values, mean=mean, std=spread, failed=failed)


def _answers(outcome: Outcome) -> Answers | None:
    """Return what a finished trial's network says; None where that is not known, or damaged."""
    if outcome.accuracy is None:
        return None
    try:
        return read_answers(outcome.trial.folder)
    except InputError as error:
        warn(f"{error}; {outcome.trial} is judged by its accuracy alone")
        return None


def summarize_trials(
    outcomes: Outcomes,
    *,
    kind: Kind,
    recipe: str,
    on: str,
    judging: Judging | None = None,
    before: Sequence[Look] = (),
) -> Comparison:
    """Return what comparison.json says.

    Args:
        outcomes: of the arms.
        kind: what the arms are.
        recipe: path of what they share.
        on: whose estimator, or which schedule, differs.
        judging: how they are judged.
        before: looks at the same comparison that were recorded before.
    """
    chosen = judging or Judging()
    judged = judge(outcomes, margin=chosen.margin, alpha=chosen.alpha)
    seeds = [outcome.trial.seed for outcome in next(iter(outcomes.values()))]
    said = verdict(judged.differences, {arm.name: arm.failed for arm in judged.arms})
    if judged.without_answers and judged.differences:
        names = "; ".join(judged.without_answers)
        said += f"\nJudged by accuracies alone, as validation.npz is missing or of others: {names}."
    looks = looks_with(Look(seeds=seeds, alpha=chosen.alpha, planned=True, verdict=said), before)
    if judged.differences:
        said += said_of_looks(looks, chosen)
    return Comparison(
        kind=kind,
        recipe=recipe,
        seeds=seeds,
        arms=judged.arms,
        differences=judged.differences,
        verdict=said,
        on=on,
        margin=chosen.margin,
        looks=looks,
        without_answers=judged.without_answers,
        **of_trials(outcomes),
    )


def looks_with(look: Look, before: Sequence[Look]) -> list[Look]:
    """Return all looks, this one last; looked at again, the same trials are no other look.

    It is unplanned where an earlier one had another level, or a level that is for one look alone,
    and where it was at other learning rates.
    """

    def of(each: Look) -> tuple[list[int], list[float]]:
        return each.seeds, sorted(each.learning_rates or ())

    others = [each for each in before if of(each) != of(look)]
    planned = look.alpha < ALPHA and all(
        each.alpha == look.alpha and of(each)[1] == of(look)[1] for each in others
    )
    return [*others, look.model_copy(update={"planned": planned or not others})]


def said_of_looks(looks: Sequence[Look], judging: Judging, *, sought: str = "a winner") -> str:
    """Return what is to be said of having looked before, a line, or "".

    Args:
        looks: all of them, the last one last.
        judging: how the last one was judged.
        sought: what a look may find by chance.
    """
    count = len(looks[-1].seeds)
    if looks[-1].planned:
        if not judging.looks:
            return ""
        at = judging.looks.index(count) + 1 if count in judging.looks else len(looks)
        level = f"each has level {judging.alpha:.3g}"
        return f"\nLook {at} of {len(judging.looks)} planned ones, at {count} seeds: {level}."
    counts = [len(look.seeds) for look in looks]
    earlier = " and ".join(map(str, counts[:-1]))
    seeds = "seed" if earlier == "1" else "seeds"
    rates = {tuple(sorted(look.learning_rates or ())) for look in looks}
    elsewhere = ", also at other learning rates" if len(rates) > 1 else ""
    said = (
        f"\nThis is an unplanned look, as the comparison was judged before on {earlier} {seeds}"
        f"{elsewhere}: looking until there is {sought} finds one by chance"
    )
    if counts == sorted(set(counts)) and not elsewhere:
        chance = chance_of_any(counts, [look.alpha for look in looks])
        said += f", here in {100 * chance:.0f} % of comparisons"
    if elsewhere or min(counts) < 2:
        return f"{said}; choose seeds{' and rates' if elsewhere else ''} before the first look."
    plan = ",".join(map(str, sorted(set(counts))))
    return f"{said}; plan it with --looks {plan}."


def all_decided(result: Comparison) -> bool:
    """Tell whether more seeds are needed for no difference: each is shown, or shown to be none."""
    return all(is_decided(item) for item in result.differences)


def stages(trials: Sequence[Trial], looks: Sequence[int]) -> list[list[Trial]]:
    """Return the trials that each look is at, all of them in their order.

    Raises:
        InputError: If the last look is not at all seeds.
    """
    seeds = list(dict.fromkeys(trial.seed for trial in trials))
    refuse_other_looks(looks, len(seeds))
    if not looks:
        return [list(trials)]
    return [[trial for trial in trials if trial.seed in seeds[:count]] for count in looks]


def refuse_other_looks(looks: Sequence[int], seeds: int) -> None:
    """Check that the last look, where looks are planned, is at all seeds.

    Raises:
        InputError: If it is not.
    """
    if looks and looks[-1] != seeds:
        given = ",".join(map(str, looks))
        raise InputError(
            f"--looks {given}: the last one is at all seeds, and --seeds gives {seeds}"
        )


def looks_before(report: Path) -> list[Look]:
    """Return the looks that a comparison.json records; of a damaged one, none."""
    said = looks_of(report).get("looks")
    try:
        return [Look.of(each, report) for each in said] if isinstance(said, list) else []
    except InputError:
        return []
