"""Is a custom gradient estimator a straight-through one in disguise? Four arms, one verdict.

Reference: Schoenbauer et al., 2024, arXiv:2405.05171.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from qtool.comparison.equivalence.asked import (
    CUSTOM,
    JITTER,
    MAPPED,
    NAIVE,
    Question,
    arm_name,
)
from qtool.comparison.equivalence.likeness import (
    METRIC_NAMES,
    Figures,
    Likeness,
    Traced,
    measure,
    read_traced,
)
from qtool.comparison.equivalence.slopes import slope_of
from qtool.comparison.equivalence.verdict import is_equivalent, rule_of, sentence
from qtool.comparison.execution.trials import Outcomes, of_trials
from qtool.comparison.explained import explanations
from qtool.comparison.judged import Judging, judge, looks_with, said_of_looks
from qtool.reports.comparisons import Arm, Curve, Difference, Equivalence, Look, Slope
from qtool.runs.kept.folder import RunFolder


@dataclass(frozen=True)
class AtRate:
    """What is found at one learning rate.

    Attributes:
        arms, differences, curves: as the report has them.
        figures: METRIC_NAMES -> compared arm -> the mean over seeds at the end of training.
        errors: compared arm -> seed -> weight alignment error at the end of training.
        left_out: how many seeds some arm did not finish.
    """

    arms: list[Arm]
    differences: list[Difference]
    curves: list[Curve]
    figures: dict[str, Figures]
    errors: dict[str, dict[int, float | None]]
    left_out: int


def equivalence_report(
    recipe: str,
    question: Question,
    outcomes: Outcomes,
    read: Callable[[RunFolder], Traced] = read_traced,
    *,
    judging: Judging | None = None,
    before: Sequence[Look] = (),
) -> Equivalence:
    """Return what comparison.json says.

    Args:
        recipe: its path.
        question: what was compared.
        outcomes: of each arm at each learning rate, by `arm_name`. Arms are judged on the seeds
            that all of them finished, naive apart.
        read: returns what a finished trial did, from its folder.
        judging: what counts as equal, and when it is looked at.
        before: looks at the same comparison that were recorded before.
    """
    chosen = judging or Judging()
    alpha = chosen.alpha
    found = {rate: _at_rate(question, rate, outcomes, read, chosen) for rate in question.rates}
    theory, smallest = question.theory, found[min(question.rates)]
    slopes = {arm: slope_of(_by_seed(found, arm), alpha=alpha) for arm in question.compared}
    error = smallest.figures[METRIC_NAMES[0]]
    equivalent = None
    if not theory.outside and error[JITTER]:
        equivalent = is_equivalent(slopes[MAPPED], error[MAPPED], error[JITTER])
    metrics = {
        name: {arm: [at.figures[name][arm] for at in found.values()] for arm in question.compared}
        for name in METRIC_NAMES
    }
    said = _verdict(question, smallest, slopes, equivalent=equivalent)
    look = Look(
        seeds=question.seeds,
        alpha=alpha,
        planned=True,
        verdict=said,
        learning_rates=question.rates,
    )
    looks = looks_with(look, before)
    return Equivalence(
        kind="equivalence",
        recipe=recipe,
        seeds=question.seeds,
        learning_rates=question.rates,
        estimator=question.estimators,
        alphas=None if theory.adaptive or theory.outside else question.alphas,
        outside_the_class=theory.outside,
        arms=[arm for at in found.values() for arm in at.arms],
        differences=[item for at in found.values() for item in at.differences],
        **metrics,
        equivalent=equivalent,
        rule=rule_of(alpha),
        notes=theory.notes,
        verdict=said + said_of_looks(looks, chosen, sought="a verdict"),
        curves=[curve for at in found.values() for curve in at.curves],
        slopes=slopes,
        margin=chosen.margin,
        looks=looks,
        explained=explanations(outcomes),
        **of_trials(outcomes),
    )


def _at_rate(
    question: Question,
    rate: float,
    outcomes: Outcomes,
    read: Callable[[RunFolder], Traced],
    judging: Judging,
) -> AtRate:
    """Hold every arm against custom, at one learning rate."""
    own = {arm_name(rate, arm): outcomes[arm_name(rate, arm)] for arm in question.arms}
    found = judge(own, margin=judging.margin, alpha=judging.alpha)
    arms, differences = found.arms, found.differences
    finished = {
        arm: {o.trial.seed: o.trial.folder for o in own[arm_name(rate, arm)] if o.finished}
        for arm in question.arms
    }
    needed = [finished[arm] for arm in question.arms if arm != NAIVE]
    judged = [seed for seed in question.seeds if all(seed in seeds for seeds in needed)]
    figures: dict[str, Figures] = {name: {} for name in METRIC_NAMES}
    errors: dict[str, dict[int, float | None]] = {}
    curves: list[Curve] = []
    for arm, trained in question.compared.items():
        alike: list[Likeness] = []
        for seed in (seed for seed in judged if seed in finished[trained]):
            a, b = (read(finished[name][seed]) for name in (CUSTOM, trained))
            alike.append(measure(a, b, arm, question.theory))
            curves.append(_curve(rate, seed, arm, alike[-1]))
            errors.setdefault(arm, {})[seed] = alike[-1].final[METRIC_NAMES[0]]
        for name in METRIC_NAMES:
            figures[name][arm] = _mean(each.final[name] for each in alike)
    arms = [arm.model_copy(update={"learning_rate": rate}) for arm in arms]
    return AtRate(arms, differences, curves, figures, errors, len(question.seeds) - len(judged))


def _by_seed(found: Mapping[float, AtRate], arm: str) -> dict[int, dict[float, float | None]]:
    """Return seed -> learning rate -> an arm's weight alignment error."""
    errors: dict[int, dict[float, float | None]] = {}
    for rate, at in found.items():
        for seed, error in at.errors.get(arm, {}).items():
            errors.setdefault(seed, {})[rate] = error
    return errors


def _curve(rate: float, seed: int, arm: str, alike: Likeness) -> Curve:
    return Curve(
        learning_rate=rate,
        seed=seed,
        arm=arm,
        weight_alignment_error=alike.alignment_errors,
        quantized_weight_agreement=alike.code_agreements,
        inference_agreement=alike.inference_agreements,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _verdict(
    question: Question,
    smallest: AtRate,
    slopes: Mapping[str, Slope | None],
    *,
    equivalent: bool | None,
) -> str:
    """Say in words what the rule makes of the figures, with the figures."""
    name, theory, rate = question.estimators, question.theory, min(question.rates)
    errors, agreements = (smallest.figures[key] for key in METRIC_NAMES[:2])
    if theory.outside:
        return f"{name} is outside the class of arXiv:2405.05171: {theory.outside}."
    if errors[JITTER] == 0.0:
        why = "a 1 % learning-rate change moved no weight, so the run is too short to say anything"
        return f"{name}: at learning rate {rate:g} {why}."
    if errors[MAPPED] is None or errors[JITTER] is None:
        return f"{name}: at the smallest learning rate some arm did not finish, so nothing is said."
    changes = ""
    if not theory.adaptive:
        factors = " or ".join(f"{alpha:.3g}" for alpha in question.alphas)
        changes = f" with lr x {factors} and re-initialized weights"
    pairs = ((arm, errors[arm], agreements[arm]) for arm in (MAPPED, JITTER, NAIVE))
    figures = "; ".join(
        f"{arm} {error:.3g} and {100 * agreed:.2f} %"
        for arm, error, agreed in pairs
        if error is not None and agreed is not None
    )
    what = f"{name} {{}} straight_through{changes}"
    naive = "" if theory.adaptive else NAIVE  # there mapped is naive
    told = sentence(what, slopes, mapped=MAPPED, naive=naive, held=equivalent)
    left_out, count = smallest.left_out, len(question.seeds)
    fewer = f" Some arm did not finish on {left_out} of {count} seeds, which are left out."
    return (
        f"{told} At learning rate {rate:g}, weight alignment error and equal codes: {figures}."
        f"{fewer if left_out else ''}"
    )
