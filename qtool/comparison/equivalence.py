"""Is a custom gradient estimator a straight-through one in disguise? Four arms, one verdict.

custom: the estimator as it is. mapped: straight_through from M(w0) at the learning rate times
alpha (Adam: straight_through, nothing changed). naive: straight_through, nothing changed.
jitter: custom at 1.01 times the learning rate, the noise below which nothing can be told apart.
Every arm is held against custom, of the same seed and learning rate.

Reference: Schoenbauer et al., 2024, arXiv:2405.05171.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from qtool.comparison import agreement
from qtool.comparison.trials import summarize_trials
from qtool.runs.changes import Record, read_record
from qtool.runs.folder import METRICS
from qtool.straight_through.weights import WeightMap

CUSTOM, MAPPED, NAIVE, JITTER = "custom", "mapped", "naive", "jitter"
JITTER_FACTOR = 1.01
FACTOR = 2.0  # of the noise: how far mapped may be from custom
RULE = (
    "indistinguishable: at the smallest learning rate, both the weight alignment error of mapped "
    f"and its share of differing codes are at most {FACTOR:g} times those of jitter"
)
METRIC_NAMES = (
    "weight_alignment_error",
    "quantized_weight_agreement",
    "change_point_agreement",
    "inference_agreement",
    "change_point_agreement_compressed",
    "change_point_error",
    "incorrect_inference_agreement",
    "loss_correlation",
    "accuracy_correlation",
)
Metrics = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is compared.

    Attributes:
        maps: layer -> alpha and M of its weight.
        adaptive: the optimizer is of Adam's family.
        outside: why there is no mapped arm, or "".
        notes: what keeps the equivalence from being exact.
        rates: learning rates, in the order of the report.
        seeds: one trial of each arm and learning rate for each.
    """

    maps: dict[str, WeightMap]
    adaptive: bool
    outside: str
    notes: list[str]
    rates: list[float]
    seeds: list[int]

    @property
    def arms(self) -> list[str]:
        """Return the arms that are trained: under Adam mapped is naive, and stands for both."""
        if self.outside:
            return [CUSTOM, NAIVE, JITTER]
        return [CUSTOM, MAPPED, JITTER] if self.adaptive else [CUSTOM, MAPPED, NAIVE, JITTER]

    @property
    def compared(self) -> dict[str, str]:
        """Return the arms that are held against custom, each with the one that was trained."""
        trained = {arm: arm for arm in self.arms[1:]}
        return {**trained, NAIVE: trained.get(NAIVE, MAPPED)}

    @property
    def alphas(self) -> list[float]:
        """Return the factors of learning rates, each once."""
        return list(dict.fromkeys(form.form.alpha for form in self.maps.values()))

    @property
    def estimators(self) -> str:
        """Return the estimators' names, each once."""
        return ", ".join(dict.fromkeys(form.estimator for form in self.maps.values()))


def arm_name(rate: float, arm: str) -> str:
    """Return the name of an arm at a learning rate, which is its folder's too."""
    return f"lr-{rate:g}/{arm}"


@dataclass(frozen=True)
class Trial:
    """A finished trial: what was recorded, and its lines of metrics."""

    record: Record
    history: list[dict[str, Any]] = field(default_factory=list)

    def values(self, key: str) -> list[float | None]:
        """Return what the lines say under a key."""
        return [line[key] for line in self.history]


def read_trial(place: Path) -> Trial:
    """Return a finished trial from its folder."""
    lines = (place / METRICS).read_text(encoding="utf-8").splitlines()
    history = [json.loads(line) for line in lines]
    return Trial(read_record(place, len(history)), history)


def measure(a: Trial, b: Trial, arm: str, question: Question) -> tuple[Metrics, Metrics]:
    """Return the metrics of an arm's trial against custom's: at the end, and epoch by epoch."""
    maps = {name: question.maps[name] for name in a.record.layers}
    warps = arm == MAPPED and not question.adaptive
    moves = {name: form.move for name, form in maps.items()} if warps else {}
    largest = {n: form.largest_level(a.record.layers[n].scale) for n, form in maps.items()}
    curves: Metrics = {
        "weight_alignment_error": agreement.alignment_errors(a.record, b.record, moves, largest),
        "quantized_weight_agreement": agreement.code_agreements(a.record, b.record),
        "inference_agreement": agreement.inference_agreements(a.record, b.record),
    }
    final = {key: values[-1] for key, values in curves.items()}
    final |= agreement.change_point_agreement(a.record, b.record)
    final["incorrect_inference_agreement"] = agreement.incorrect_agreement(a.record, b.record)
    for key in ("loss", "accuracy"):
        pair = [trial.values(f"validation_{key}") for trial in (a, b)]
        final[f"{key}_correlation"] = agreement.correlation(*pair)
    return final, curves


def equivalence_report(
    recipe: str,
    question: Question,
    summaries: dict[str, list[dict[str, Any]]],
    read: Callable[[str, int], Trial],
) -> dict[str, Any]:
    """Return what comparison.json says.

    Args:
        recipe: its path.
        question: what was compared.
        summaries: of each arm at each learning rate, by `arm_name`, in the order of the seeds. Arms
            are judged on the seeds that all of them finished, naive apart.
        read: arm_name and seed -> a finished trial.
    """
    metrics: dict[str, dict[str, list[float | None]]] = {
        name: {arm: [] for arm in question.compared} for name in METRIC_NAMES
    }
    curves: list[dict[str, Any]] = []
    arms, differences = [], []
    left_out: dict[float, list[int]] = {}
    for rate in question.rates:
        own = {arm_name(rate, arm): summaries[arm_name(rate, arm)] for arm in question.arms}
        part = summarize_trials("equivalence", recipe, question.seeds, own)
        arms += [{**arm, "learning_rate": rate} for arm in part["arms"]]
        differences += part["differences"]
        finished = {
            arm: _finished(question.seeds, own[arm_name(rate, arm)]) for arm in question.arms
        }
        judged = set.intersection(*(finished[arm] for arm in question.arms if arm != NAIVE))
        left_out[rate] = [seed for seed in question.seeds if seed not in judged]
        for arm, trained in question.compared.items():
            measured = []
            for seed in sorted(judged & finished[trained], key=question.seeds.index):
                pair = [read(arm_name(rate, name), seed) for name in (CUSTOM, trained)]
                final, curve = measure(pair[0], pair[1], arm, question)
                measured.append(final)
                curves.append({"learning_rate": rate, "seed": seed, "arm": arm, **curve})
            for name in METRIC_NAMES:
                metrics[name][arm].append(_mean([final[name] for final in measured]))
    equivalent = None if question.outside else _is_equivalent(question, metrics)
    return {
        "kind": "equivalence",
        "recipe": recipe,
        "seeds": question.seeds,
        "learning_rates": question.rates,
        "estimator": question.estimators,
        "alphas": None if question.adaptive or question.outside else question.alphas,
        "outside_the_class": question.outside,
        "arms": arms,
        "differences": differences,
        **metrics,
        "equivalent": equivalent,
        "rule": RULE,
        "notes": question.notes,
        "verdict": _verdict(question, metrics, equivalent, left_out[min(question.rates)]),
        "curves": curves,
    }


def _finished(seeds: list[int], summaries: list[dict[str, Any]]) -> set[int]:
    """Return the seeds on which an arm finished."""
    done = zip(seeds, summaries, strict=True)
    return {seed for seed, summary in done if summary["status"] == "finished"}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _is_equivalent(question: Question, metrics: dict[str, Any]) -> bool | None:
    """Judge by RULE; None where no trial tells, or all weights stayed where they were."""
    at = question.rates.index(min(question.rates))
    errors, agreements = (metrics[name] for name in METRIC_NAMES[:2])
    known = [table[arm][at] for table in (errors, agreements) for arm in (MAPPED, JITTER)]
    if None in known or not known[1]:
        return None
    error, noise, agreed, agreed_noise = known
    return error <= FACTOR * noise and 1 - agreed <= FACTOR * (1 - agreed_noise)


def _verdict(
    question: Question, metrics: dict[str, Any], equivalent: bool | None, left_out: list[int]
) -> str:
    """Say in words what RULE makes of the figures, with the figures."""
    name = question.estimators
    if question.outside:
        return f"{name} is outside the class of arXiv:2405.05171: {question.outside}."
    rate = min(question.rates)
    at = question.rates.index(rate)
    if equivalent is None and metrics[METRIC_NAMES[0]][JITTER][at] == 0.0:
        why = "a 1 % learning-rate change moved no weight, so the run is too short to say anything"
        return f"{name}: at learning rate {rate:g} {why}."
    if equivalent is None:
        return f"{name}: at the smallest learning rate some arm did not finish, so nothing is said."
    changes = ""
    if not question.adaptive:
        factors = " or ".join(f"{alpha:.3g}" for alpha in question.alphas)
        changes = f" with lr x {factors} and re-initialized weights"
    errors, agreements = (metrics[key] for key in METRIC_NAMES[:2])
    figures = "; ".join(
        f"{arm} {errors[arm][at]:.3g} and {100 * agreements[arm][at]:.2f} %"
        for arm in (MAPPED, JITTER, NAIVE)
        if errors[arm][at] is not None
    )
    is_it = "indistinguishable from" if equivalent else "not the same as"
    noise = "down to" if equivalent else "beyond"
    count = len(question.seeds)
    fewer = f" Some arm did not finish on {len(left_out)} of {count} seeds, which are left out."
    return (
        f"{name} is {is_it} straight_through{changes}, {noise} {FACTOR:g} times the noise of a 1 % "
        f"learning-rate change. At learning rate {rate:g}, weight alignment error and equal codes: "
        f"{figures}.{fewer if left_out else ''}"
    )
