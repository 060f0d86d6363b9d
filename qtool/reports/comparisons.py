"""What comparison.json holds: arms, differences and a verdict."""

from typing import Literal

from pydantic import Field, JsonValue

from qtool.reports.explanations import Explained
from qtool.reports.fairness import Candidate
from qtool.reports.result import Result
from qtool.reports.words import number, percent, size


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
    integrated_rate: float | None = None
    """Mean learning rate that reaches its weights, with momentum and what estimator or blend lets
    through, as a share of the first arm's; absent under Adam, and where theory names none."""

    def beside_others(self) -> tuple[str, ...]:
        """Return what a finished run or file is put side by side by, as people read it."""
        return (
            self.name,
            percent(self.mean),
            number(self.weight_bits_mean, 3),
            "-" if self.bytes is None else size(self.bytes),
            number(self.latency_ms),
        )


class Difference(Result):
    """Mean paired difference of an arm from another, and what may be said of it."""

    arm: str
    against: str
    mean: float | None
    """Of arm - against over the seeds that both finished; null where there is none."""
    low: float | None
    """The interval, of the confidence below; null where fewer than two pairs leave it open."""
    high: float | None
    pairs: int
    """How many seeds both finished."""
    p_value: float | None = None
    """Of the test that there is no difference; null where the pairs leave it open."""
    confidence: float | None = None
    """Of the interval: 0.95, or more where Holm's correction for several arms asks for it."""
    images: int | None = None
    """Validation images; null where only the accuracies are known."""
    std: float | None = None
    """Of the difference of one seed."""
    freedom: float | None = None
    """Degrees of freedom of std."""
    by_images: bool | None = None
    """std was found by which images each network gets right, too, and not by seeds alone."""
    new_low: float | None = None
    """The interval for seeds and images that are both new, of the same confidence."""
    new_high: float | None = None
    margin: float | None = None
    """What counts as equal."""
    equal_low: float | None = None
    """The 90 % interval of the test that the arms are equal within the margin."""
    equal_high: float | None = None
    equal: bool | None = None
    """That interval lies within the margin."""
    detectable: float | None = None
    """The difference that would have been found 4 times in 5."""
    seeds_needed: int | None = None
    """Of them a difference as large as the margin is found 4 times in 5; null: more than 1,000."""
    arm_only: int | None = None
    """Of one pair: images that only the arm's network gets right."""
    against_only: int | None = None
    mcnemar_p: float | None = None
    """Of one pair: McNemar's exact test of these two networks."""


class Look(Result):
    """One time that a comparison was judged."""

    seeds: list[int]
    alpha: float
    """How often chance alone may name a winner at this look."""
    planned: bool
    """By --looks, or the first one; else seeds were added to a comparison that was judged."""
    verdict: str
    learning_rates: list[float] | None = None
    """Of an equivalence; absent of others."""


class FailedTrial(Result):
    """A trial that did not come to its end."""

    arm: str
    seed: int
    error: str
    """Why not."""

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed} failed: {self.error}"


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
    margin: float | None = None
    """Accuracies that lie no further apart count as equal."""
    looks: list[Look] = Field(default_factory=list)
    """Every time that this comparison was judged, the last one too."""
    without_answers: list[str] = Field(default_factory=list)
    """Trials of which only the accuracy is known, so that their arms are judged by seeds alone."""
    threads: int | None = None
    """Of the processor, with which every trial was trained; null where nothing was."""
    failed_trials: list[FailedTrial] = Field(default_factory=list)
    match: str | None = None
    """What learning rates were divided by; absent where nothing was matched."""
    tuned: dict[str, dict[str, JsonValue]] | None = None
    """Arm -> key of the recipe -> value that was chosen for it; absent where nothing was tuned."""
    at_edge: dict[str, list[str]] | None = None
    """Arm -> keys whose best value is the smallest or the largest of those tried."""
    candidates: list[Candidate] | None = None
    """All that were tried."""
    explained: list[Explained] = Field(default_factory=list[Explained])
    """How the trials of each arm trained; none for runs."""


class Partial(Result):
    """How far a comparison is."""

    done: int
    """Trials that were trained, or failed."""
    trials: int


class UnfinishedComparison(Result):
    """comparison.json while trials are trained: only then it has `partial`."""

    kind: Literal["estimators", "schedules", "equivalence"]
    recipe: str
    seeds: list[int]
    arms: list[Arm]
    """Their values are null also where a trial is not done."""
    verdict: str
    threads: int | None
    failed_trials: list[FailedTrial]
    partial: Partial
    looks: list[Look] = Field(default_factory=list)
    """Every time that a comparison of fewer trials was judged in the same folder."""


class Curve(Result):
    """How alike one trial and custom's stay, at the beginning and after each epoch."""

    learning_rate: float
    seed: int
    arm: str
    weight_alignment_error: list[float | None]
    quantized_weight_agreement: list[float]
    inference_agreement: list[float]


class Slope(Result):
    """With which power of the learning rate an error falls."""

    slope: float
    low: float | None
    """The 95 % interval; null where too few rates and seeds leave it open."""
    high: float | None
    points: int
    """Rates x seeds that it is found from."""
    confidence: float | None = None
    """Of the interval: 0.95, or more where looks are planned."""


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
    threads: int | None = None
    """Of the processor, with which every trial was trained."""
    failed_trials: list[FailedTrial] = Field(default_factory=list)
    slopes: dict[str, Slope | None] = Field(default_factory=dict[str, Slope | None])
    """Arm -> how its weight alignment error falls with the learning rate, at the end of training;
    null where no seed has it at two rates."""
    margin: float | None = None
    """Accuracies that lie no further apart count as equal."""
    looks: list[Look] = Field(default_factory=list)
    """Every time that this equivalence was judged, the last one too."""
    explained: list[Explained] = Field(default_factory=list[Explained])
    """How the trials of each arm trained."""
