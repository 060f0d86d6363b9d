"""What comparison.json holds: arms, differences and a verdict."""

from typing import Literal

from qtool.reports.result import Result


class Arm(Result):
    """One compared choice: its accuracy on each seed."""

    name: str
    values: list[float | None]
    """By seed; null where the trial failed or has no accuracy."""
    mean: float | None
    std: float | None
    failed: int
    learning_rate: float | None = None
    weight_bits_mean: float | None = None
    bytes: int | None = None
    latency_ms: float | None = None


class Difference(Result):
    """Mean paired difference of an arm from another, with its 95 % confidence interval."""

    arm: str
    against: str
    mean: float | None
    """Of arm - against over the seeds that both finished; null where there is none."""
    low: float | None
    """The interval; null where fewer than two pairs leave it open."""
    high: float | None
    pairs: int
    """How many seeds both finished."""
    p_value: float | None = None
    """Of the t-test that there is no difference; null where the pairs leave it open."""


class Comparison(Result):
    """comparison.json: arms, differences, verdict."""

    kind: Literal["estimators", "schedules", "runs"]
    recipe: str | None
    seeds: list[int]
    arms: list[Arm]
    differences: list[Difference]
    verdict: str
    on: str | None = None
    """Whose estimator, or which schedule, differs."""


class Curve(Result):
    """How alike one trial and custom's stay, at the beginning and after each epoch."""

    learning_rate: float
    seed: int
    arm: str
    weight_alignment_error: list[float | None]
    quantized_weight_agreement: list[float]
    inference_agreement: list[float]


ByArm = dict[str, list[float | None]]  # arm -> one value for each learning rate


class Equivalence(Result):
    """comparison.json of `compare equivalence`: is it straight_through in disguise?"""

    kind: Literal["equivalence"]
    recipe: str
    seeds: list[int]
    learning_rates: list[float]
    estimator: str
    alphas: list[float] | None
    """Factors of learning rates; null under Adam and outside the class."""
    outside_the_class: str
    arms: list[Arm]
    differences: list[Difference]
    weight_alignment_error: ByArm
    quantized_weight_agreement: ByArm
    change_point_agreement: ByArm
    inference_agreement: ByArm
    change_point_agreement_compressed: ByArm
    change_point_error: ByArm
    incorrect_inference_agreement: ByArm
    loss_correlation: ByArm
    accuracy_correlation: ByArm
    equivalent: bool | None
    rule: str
    notes: list[str]
    verdict: str
    curves: list[Curve]
