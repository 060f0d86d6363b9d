"""Training images that are held out: never trained on nor calibrated with, judged by each epoch.

Which they are does not depend on a run's seed, so that all trials of a comparison are judged by the
same ones. Hyperparameters are chosen by them, and the validation set judges what was chosen, once.
"""

import numpy as np
import torch
from torch import Tensor

from qtool.data.batches import seeded_generator
from qtool.data.sources import FileSplit, Split
from qtool.errors import DataError

HOLDOUT_SEED = 1


def hold_out(
    train: Split | FileSplit, share: float, source: str
) -> tuple[Split | FileSplit, Split | FileSplit]:
    """Return what of the training images is trained on, and what is held out, each in its order.

    Args:
        train: N samples.
        share: of them to hold out, 0 < share < 1.
        source: name of the data set, for messages.

    Raises:
        DataError: If that leaves nothing on one side.
    """
    kept, held = holdout_indices(torch.as_tensor(train.labels), share)
    if not len(held) or not len(kept):
        what = "holds out none" if not len(held) else "leaves none to train on"
        raise DataError(
            f"{source}: data.holdout: {share:g} of {len(train):,} training images {what}; choose "
            "another share"
        )
    return train.subset(kept), train.subset(held)


def holdout_indices(labels: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the indices, int64 ascending, of the samples that stay and of those held out.

    Of N samples round(share N) are held out, of a class of n samples floor(share n), and of those
    classes whose remainder is largest one more. Each class keeps a sample to train on; where that
    is against the count, fewer are held out.

    Args:
        labels: int64 [N], classes; float32 [N] where they are numbers: then all are one class.
        share: 0..1.
    """
    if labels.is_floating_point():
        labels = torch.zeros(len(labels), dtype=torch.int64)
    order = torch.randperm(len(labels), generator=seeded_generator(HOLDOUT_SEED))
    _, classes, counts = np.unique(labels.cpu().numpy(), return_inverse=True, return_counts=True)
    wanted = share * counts
    quota = np.floor(wanted).astype(np.int64)
    more = round(share * len(labels)) - int(quota.sum())
    quota[np.argsort(quota - wanted, kind="stable")[: max(0, more)]] += 1
    quota = np.minimum(quota, counts - 1)
    shuffled = classes.reshape(-1)[order.numpy()]
    by_class = np.argsort(shuffled, kind="stable")
    place = np.empty(len(labels), np.int64)  # of each sample, in the shuffled order of its class
    begins = np.cumsum(counts) - counts
    place[by_class] = np.arange(len(labels)) - np.repeat(begins, counts)
    held = torch.from_numpy(place < quota[shuffled])
    return order[~held].sort().values, order[held].sort().values
