"""best.pt: the network as it was after the epoch that did best on the images held out.

It is what was judged then, in the form of a checkpoint without what training goes on with; a run
goes on from checkpoint.pt alone. It is written before that, so that a checkpoint never tells of a
best epoch whose weights are not there.
"""

from dataclasses import replace

from qtool.errors import InputError
from qtool.runs.kept import checkpoint
from qtool.runs.kept.checkpoint import Checkpoint
from qtool.runs.kept.folder import RunFolder
from qtool.training.patience import best_epoch


def keep_if_best(state: Checkpoint, folder: RunFolder) -> None:
    """Write best.pt where the last epoch of a state, at an epoch's end, is the best so far.

    Raises:
        WriteError: If it cannot be written there.
    """
    last = state.history[-1]
    if last.holdout_loss is not None and best_epoch(state.history) == last.epoch:
        network = replace(state, model=dict(state.judged), average=None)
        checkpoint.save_alone(replace(network, optimizer={}, random={}), folder.best)


def refuse_unless_best(state: Checkpoint, folder: RunFolder) -> None:
    """Check that best.pt is of the epoch that did best of all that a run has done.

    Raises:
        InputError: If it is not, as where the run has gone on from before it elsewhere.
    """
    history = folder.history() if folder.metrics.is_file() else state.history
    best = best_epoch(history)
    if len(state.history) != best:
        raise InputError(
            f"{folder.best}: is of epoch {len(state.history)}, and the images held out are told "
            f"best after epoch {best}; train the run again, or convert its last epoch"
        )


def why_no_best(folder: RunFolder, holdout: float) -> str:
    """Say why a run has no best.pt.

    Args:
        folder: of the run.
        holdout: share of the training images that its recipe holds out.
    """
    if not holdout:
        return (
            f"{folder}: no {folder.best.name}: epochs are judged by images that are held out, and "
            f"its recipe has no data.holdout, such as 0.1"
        )
    return f"{folder}: no {folder.best.name} yet, or it was removed"
