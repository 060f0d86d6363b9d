"""What may explain that arms differ: the figures of their epochs, put together."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from qtool.comparison.execution.trials import Outcomes
from qtool.errors import QtoolError
from qtool.reports.explanations import Explained
from qtool.reports.results import EpochLine

ASKED = ("coarse_gradient_cosine", "saturated_activations")  # of --explain
MEASURES = (
    *ASKED,
    "saturated_weights",
    "levels_in_use",
    "sqnr",
    "flip_ratio",
    "oscillation_frequency",
    "weight_scale",
    "input_scale",
)


def explanations(outcomes: Outcomes) -> list[Explained]:
    """Return how the trials of each arm trained; those whose metrics cannot be read are left out.

    Args:
        outcomes: of the arms.
    """
    found = []
    for arm, done in outcomes.items():
        histories = list[Sequence[EpochLine]]()
        for outcome in done:
            try:
                histories.append(outcome.trial.folder.history())
            except QtoolError:  # it is among the failed trials, or its figures are not needed
                continue
        if any(histories):
            found.append(explained(arm, histories))
    return found


def explained(arm: str, histories: Sequence[Sequence[EpochLine]]) -> Explained:
    """Return the means over trials and layers of what the epochs of an arm say.

    Args:
        arm: its name.
        histories: of its trials; one that failed may have fewer epochs.
    """
    epochs = max(map(len, histories))
    at = [[lines[k] for lines in histories if k < len(lines)] for k in range(epochs)]
    measures = {key: [_mean([_figure(line, key) for line in lines]) for lines in at]
                for key in MEASURES}  # fmt: skip
    known = {key: values for key, values in measures.items() if any(v is not None for v in values)}
    return Explained(arm=arm, epochs=list(range(1, epochs + 1)), measures=known)


def _figure(line: EpochLine, key: str) -> float | None:
    """Return a figure of an epoch; of one for each layer, the mean."""
    value = getattr(line, key)
    return _mean(list(value.values())) if isinstance(value, Mapping) else value


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
