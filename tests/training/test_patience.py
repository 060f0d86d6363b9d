"""Which epoch did best, and when a training is to end; against what the words say."""

import pytest

from qtool.reports.results import EpochLine
from qtool.training.patience import Patience, best_epoch, merits


def lines(*figures: tuple[float | None, float]) -> list[EpochLine]:
    return [
        EpochLine.model_construct(holdout_accuracy=accuracy, holdout_loss=loss, holdout_f1=None)
        for accuracy, loss in figures
    ]


@pytest.mark.parametrize(
    ("found", "patience", "over_after"),
    [
        ([0.1, 0.2, 0.2, 0.3, 0.2, 0.2], Patience(1), 3),
        ([0.1, 0.2, 0.2, 0.3, 0.2, 0.2], Patience(2), 6),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], Patience(1), None),
        ([0.1, 0.15, 0.3, 0.35, 0.36], Patience(1, by=0.1), 2),
        ([0.1, 0.15, 0.3, 0.35, 0.36], Patience(2, by=0.1), 5),
        ([0.1, 0.15, 0.22, 0.3], Patience(2, by=0.1), None),  # beside the best, not the last one
    ],
)
def test_training_ends_where_so_many_epochs_were_no_better(
    found: list[float], patience: Patience, over_after: int | None
) -> None:
    over = [patience.is_over(found[: k + 1]) for k in range(len(found))]
    first = over.index(True) + 1 if any(over) else None
    assert first == over_after


def test_the_best_epoch_is_the_first_of_the_best_accuracy_or_of_the_least_loss() -> None:
    assert best_epoch(lines((0.5, 1.0), (0.7, 2.0), (0.7, 1.0), (0.6, 0.1))) == 2
    assert best_epoch(lines((None, 1.0), (None, 0.5), (None, 0.7))) == 2
    assert merits(lines((0.5, 1.0), (None, 0.5))) == [0.5, -0.5]
    several = lines((0.0, 1.0), (0.0, 2.0))
    assert merits([line.model_copy(update={"holdout_f1": 0.25}) for line in several]) == [0.25] * 2
