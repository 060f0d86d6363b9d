"""How alike two runs are: their weights, their codes, when codes flipped, and what they say.

Run B is held against run A, with the same data in the same order.

Reference: Schoenbauer et al., 2024, arXiv:2405.05171.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qtool.runs.kept.changes import LayerRecord, Record

Map = Callable[[Tensor, Tensor], Tensor]  # latent weights and their scale -> M of the weights
Mask = NDArray[np.bool_]


def alignment_errors(
    a: Record, b: Record, maps: Mapping[str, Map], largest: Mapping[str, float]
) -> list[float | None]:
    """Return the weight alignment error at the beginning and after each epoch.

        sum |M(w_A) - w_B| / mx  over  sum over steps so far of |w_B,t+1 - w_B,t| / mx

    It is 0 where nothing differs, and None where B stayed where it was but differs.

    Args:
        a: what the run with the custom estimator did.
        b: what the other run did.
        maps: layer -> M; no entry for the identity.
        largest: layer -> mx, the outermost level.
    """
    errors: list[float | None] = []
    for epoch in range(len(a.predictions) + 1):
        gap = path = 0.0
        for name, layer in a.layers.items():
            weights, other = layer.weights[epoch], b.layers[name]
            if name in maps:
                weights = maps[name](weights, layer.scale)
            gap += float((weights - other.weights[epoch]).abs().double().sum()) / largest[name]
            path += float(other.path[epoch]) / largest[name]
        if gap:
            errors.append(gap / path if path else None)
        else:
            errors.append(0.0)
    return errors


def code_agreements(a: Record, b: Record) -> list[float]:
    """Return the share of weights with equal codes, at the beginning and after each epoch."""
    shares = []
    for epoch in range(len(a.predictions) + 1):
        pairs = [(a.layers[n].codes[epoch], b.layers[n].codes[epoch]) for n in a.layers]
        equal = sum(int((one == two).sum()) for one, two in pairs)
        shares.append(equal / sum(len(one) for one, _ in pairs))
    return shares


def same_sequences(a: LayerRecord, b: LayerRecord) -> Mask:
    """Return which weights had the same codes one after the other, [N], whenever that was."""
    same = (a.start == b.start) & (_counts(a) == _counts(b))
    mine, others = same[a.index], same[b.index]
    differs = a.code[mine] != b.code[others]
    same[a.index[mine][differs]] = False
    return same


def same_compressed(a: LayerRecord, b: LayerRecord, same: Mask) -> Mask:
    """Return which weights had the same codes but for oscillations, [N]; `same` had them anyway."""
    result = same.copy()
    ends = [np.cumsum(_counts(run)) for run in (a, b)]
    for k in np.flatnonzero(~same & (a.start == b.start)):
        one, two = (
            compressed([int(run.start[k]), *run.code[(end[k - 1] if k else 0) : end[k]].tolist()])
            for run, end in zip((a, b), ends, strict=True)
        )
        result[k] = one == two
    return result


def compressed(codes: Sequence[int]) -> list[int]:
    """Return a sequence of codes without oscillations: while it ends in x, y, x, y, in x, y."""
    kept: list[int] = []
    for code in codes:
        kept.append(code)
        while len(kept) >= 4 and kept[-4:-2] == kept[-2:]:
            del kept[-2:]
    return kept


def flip_agreement(a: Record, b: Record) -> dict[str, float | None]:
    """Return the shares of weights with the same sequence of codes, and how far apart in time.

    change_point_error: mean difference in training steps over the flips of weights whose sequences
    are the same; None where those never flipped.
    """
    count = plain = without = flips = 0
    steps = 0.0
    for name, one in a.layers.items():
        two = b.layers[name]
        same = same_sequences(one, two)
        apart = np.abs(one.step[same[one.index]] - two.step[same[two.index]])
        count, plain = count + len(same), plain + int(same.sum())
        without += int(same_compressed(one, two, same).sum())
        flips, steps = flips + len(apart), steps + float(apart.sum())
    return {
        "change_point_agreement": plain / count,
        "change_point_agreement_compressed": without / count,
        "change_point_error": steps / flips if flips else None,
    }


def inference_agreements(a: Record, b: Record) -> list[float]:
    """Return the share of the images that judge an epoch which get the same class, for each."""
    pairs = zip(a.predictions, b.predictions, strict=True)
    return [float((one == two).double().mean()) for one, two in pairs]


def incorrect_agreement(a: Record, b: Record) -> float | None:
    """Return, of the images that both get wrong at last, the share that gets the same class."""
    one, two, labels = a.predictions[-1], b.predictions[-1], a.labels[-1]
    wrong = (one != labels) & (two != labels)
    count = int(wrong.sum())
    return int((wrong & (one == two)).sum()) / count if count else None


def correlation(one: Sequence[float | None], two: Sequence[float | None]) -> float | None:
    """Return Pearson's correlation; None where values are missing, or one side is constant."""
    pairs = [(x, y) for x, y in zip(one, two, strict=True) if x is not None and y is not None]
    if len(pairs) < len(one):
        return None
    try:
        return statistics.correlation([x for x, _ in pairs], [y for _, y in pairs])
    except statistics.StatisticsError:
        return None


def _counts(run: LayerRecord) -> NDArray[np.int64]:
    """Return how often each weight flips, [N]."""
    return np.bincount(run.index, minlength=len(run.start))
