"""Which epoch did best on the images held out, and when there is no more hope of a better one."""

from collections.abc import Sequence
from dataclasses import dataclass

from qtool.reports.results import EpochLine


def merit(accuracy: float | None, loss: float | None, f1: float | None = None) -> float:
    """Return what an epoch is judged by, the more the better.

    Args:
        accuracy: of the images held out; None where labels are numbers.
        loss: of them, which then counts negated.
        f1: of images that may have several classes; else None. It moves long before all classes of
            an image are told right.
    """
    told = accuracy if f1 is None else f1
    if told is not None:
        return told
    return float("-inf") if loss is None else -loss


def merits(lines: Sequence[EpochLine]) -> list[float]:
    """Return what epochs are judged by."""
    return [merit(line.holdout_accuracy, line.holdout_loss, line.holdout_f1) for line in lines]


def best_epoch(lines: Sequence[EpochLine]) -> int:
    """Return the number of the best epoch, from 1 on; the first of several that are as good."""
    found = merits(lines)
    return 1 + found.index(max(found))


@dataclass(frozen=True)
class Patience:
    """Ends a training that no longer gets better.

    Attributes:
        epochs: in a row that need not be better than the best before them.
        by: how much better an epoch must be to count as such.
    """

    epochs: int
    by: float = 0.0

    def is_over(self, found: Sequence[float]) -> bool:
        """Tell whether training is to end after epochs of such merits, from the first one on."""
        best, waited = float("-inf"), 0
        for each in found:
            best, waited = (each, 0) if each > best + self.by else (best, waited + 1)
            if waited >= self.epochs:
                return True
        return False
