"""What was done so that the arms of a comparison have an equal chance."""

from pydantic import JsonValue

from qtool.reports.result import Result


class Candidate(Result):
    """One combination of hyperparameters that an arm was tried with before it was compared."""

    arm: str
    values: dict[str, JsonValue]
    """Key of the recipe -> value; of a schedule, where it starts."""
    seed: int
    """Of its run, which no trial of the comparison has."""
    holdout_accuracy: float | None
    """On training images that are held out; null where it failed, or labels are no classes."""
    holdout_loss: float | None
    failed: bool
    chosen: bool
