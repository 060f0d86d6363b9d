"""The arms of a comparison with the straight-through equivalent, at every learning rate."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from math import isfinite

from qtool.comparison.arms.estimators import refuse_float, refuse_unknown, with_estimator
from qtool.comparison.arms.scaling import scaled
from qtool.comparison.equivalence.asked import (
    CUSTOM,
    JITTER,
    JITTER_FACTOR,
    MAPPED,
    NAIVE,
    Question,
    arm_name,
)
from qtool.comparison.equivalence.forecast import refuse_looks_without_verdict, said_of_power
from qtool.comparison.equivalence.report import equivalence_report
from qtool.comparison.execution.kept_files import damage_of
from qtool.comparison.execution.plan import About
from qtool.comparison.execution.trials import TrainTrial, Trial
from qtool.comparison.forecast import say_forecast
from qtool.comparison.judged import looks_before, refuse_other_looks, stages
from qtool.comparison.question import ComparisonRequest, rate_of, read_base
from qtool.console import say
from qtool.errors import InputError
from qtool.files.lock import only_writer
from qtool.recipe.places import put, section_at
from qtool.recipe.recipe import Recipe
from qtool.reports.comparisons import Equivalence
from qtool.settings.section import check
from qtool.straight_through.recipe import equivalent_of, straight_through_recipe
from qtool.straight_through.run import write_start

USUAL_FACTORS = (4, 2, 1, 0.5)  # on the recipe's learning rate


def equivalence_question(
    request: ComparisonRequest, name: str | None, rates: list[float] | None
) -> Question:
    """Return what is asked of a recipe, with what theory says of it, which is shown.

    Args:
        request: of which recipe, and how often.
        name: of the weights' estimator; None takes the recipe's.
        rates: learning rates; None takes the usual multiples of the recipe's.

    Raises:
        InputError: If it cannot be asked, or the learning rates are no learning rates.
    """
    base = read_base(request)
    recipe, source = base.recipe, base.source
    if name is not None:
        refuse_unknown(name, base, "--estimator")
        refuse_float(base, "weights")
        recipe = with_estimator(base, "weights", name, recipe.seed)
    own = rate_of(recipe.training.learning_rate.params)
    rates = rates or [factor * own for factor in USUAL_FACTORS]
    if not all(isfinite(rate) and rate > 0 for rate in rates) or own <= 0:
        raise InputError(f"{source}: a learning rate that starts at 0 cannot be scaled")
    if len({arm_name(rate, CUSTOM) for rate in rates}) < len(rates):
        raise InputError("--learning-rates: two of them are the same to six digits")
    theory = equivalent_of(recipe, str(source))
    for note in [theory.outside and f"outside the class: {theory.outside}", *theory.notes]:
        if note:
            say(f"note: {note}")
    return Question(theory, rates, base.seeds)


def equivalence_trials(question: Question, request: ComparisonRequest) -> list[Trial]:
    """Return every arm's trials at every learning rate; the mapped ones' run folders are begun."""
    folder = request.folder("equivalence")
    made: list[Trial] = []
    for rate in question.rates:
        for seed in question.seeds:
            arms = _arms_at(question, rate, seed, request)
            made += [folder.trial(arm_name(rate, arm), arms[arm]) for arm in question.arms]
    return made


def _arms_at(
    question: Question, rate: float, seed: int, request: ComparisonRequest
) -> dict[str, Recipe]:
    """Return the recipe of each arm on a seed; the mapped one's run folder is begun."""
    source = str(request.recipe)
    jitter = _with_rate(question.theory.recipe, rate * JITTER_FACTOR, seed, source)
    recipe = _with_rate(question.theory.recipe, rate, seed, source)
    theory = replace(question.theory, recipe=recipe)
    made = {CUSTOM: recipe, JITTER: jitter}
    if NAIVE in question.arms:  # straight_through and nothing else changed, whatever M is
        made[NAIVE] = straight_through_recipe(replace(theory, adaptive=True))
    if MAPPED not in question.arms:
        return made
    if theory.adaptive:
        made[MAPPED] = straight_through_recipe(theory)
    else:
        run = request.folder("equivalence").run(arm_name(rate, MAPPED), seed)
        made[MAPPED] = straight_through_recipe(theory, run.initial.resolve())
        try:
            write_start(theory, made[MAPPED], run, request.access.taken(recipe))
        except InputError:
            if not damage_of(run):
                raise  # else the trial itself says so, and counts as failed
    return made


def _with_rate(recipe: Recipe, rate: float, seed: int, source: str) -> Recipe:
    """Return the recipe with another seed and learning rate; its whole schedule scales with it."""
    data = recipe.as_dict()
    schedule = scaled(section_at(data, "training.learning_rate"), rate)
    changes = {"seed": seed, "training.learning_rate": schedule}
    return check(Recipe, put(data, changes), f"{source} at learning rate {rate:g}")


def compare_equivalent(
    request: ComparisonRequest, name: str | None, rates: Sequence[float] | None
) -> Equivalence:
    """Run every trial of an equivalence; write comparison.json and return what it says.

    Args:
        request: where trials are trained, and on what.
        name: of the custom estimator; None for the recipe's.
        rates: learning rates; None for the recipe's and some around it.
    """
    question = equivalence_question(request, name, None if rates is None else list(rates))
    judging = request.judging
    refuse_other_looks(judging.looks, len(question.seeds))
    refuse_looks_without_verdict(question, judging)
    folder, source = request.usable_folder("equivalence"), str(request.recipe)
    about = About("equivalence", source, folder)
    with only_writer(folder.path), ExitStack() as stack:
        trials = equivalence_trials(question, request)
        execution = stack.enter_context(request.execution.started(trials))
        train = TrainTrial(
            request.device,
            request.access,
            records=True,
            keep=execution.keep,
            explains=request.explain,
        )
        say_forecast(trials, execution, request.device, request.access)
        if told := said_of_power(question, judging, folder.report):
            say(told)
        for some in stages(trials, judging.looks):
            outcomes = execution.outcomes_of(some, train, about)
            seeds = list(dict.fromkeys(trial.seed for trial in some))
            result = equivalence_report(
                source,
                replace(question, seeds=seeds),
                outcomes,
                judging=judging,
                before=looks_before(folder.report),
            )
            result.write(folder.report)
            request.shown.write(result, folder)
            if len(some) == len(trials) or result.equivalent is not None:
                return result
        raise AssertionError("the last look is at all trials")
