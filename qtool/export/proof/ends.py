"""The check of what stands before and behind a network in a file.

The network alone was proven on images that qtool prepares. Here the file as it ships is run on the
same images as they are before anything is done to them, and must say what the network alone says,
but for what the runtime's resizing rounds otherwise; that is told in grey levels.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qtool.errors import ExportError
from qtool.evaluation import accuracy_of, agreement, judge
from qtool.export.proof.gate import run, run_named
from qtool.export.targets.target import Array, Runtime
from qtool.export.writing.ends import LOGITS, SHARES, Ends, preparing_alone
from qtool.export.writing.preparing import IMAGES
from qtool.export.writing.saved import read_back
from qtool.images.preprocess import Preprocess
from qtool.reports.exports import EndsReport

MOST_LEVELS = 2.01  # of 255: torch and Pillow differ by as much on noise, each rounding twice
SAME = 1e-5  # shares, of 1
HALF = 0.5  # a level; less is no other level


@dataclass(frozen=True)
class Shown:
    """What a file is shown, and the model that it was made of.

    Attributes:
        integer: that model.
        batches: returns images anew that qtool prepares, [B, C, H, W], and labels [B].
        pictures: returns anew what those are made of, uint8 [H, W, C], in the same order.
        rule: how they are prepared.
    """

    integer: nn.Module
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    pictures: Callable[[], Iterator[Array]]
    rule: Preprocess | None


@dataclass(frozen=True)
class _Found:
    """Logits of all images, batch by batch: of the file, its network alone, the integer model."""

    whole: list[Tensor] = field(default_factory=list)
    alone: list[Tensor] = field(default_factory=list)
    integer: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    same: list[bool] = field(default_factory=list)  # the file makes of it what qtool makes of it


@torch.no_grad()
def ends_report(alone: Path, path: Path, ends: Ends, shown: Shown, runtime: Runtime) -> EndsReport:
    """Run a file on pictures, and its network alone on what qtool makes of them.

    Args:
        alone: file of the network alone, which is proven.
        path: of the file.
        ends: what was put before and behind the network.
        shown: the images.
        runtime: runs the files.

    Raises:
        ExportError: If pictures are prepared in another size.
        InputError: If the runtime cannot load a file.
    """
    network, whole, found = runtime.open(alone), runtime.open(path), _Found()
    levels = _Levels(path, shown.rule, runtime) if ends.preprocess else None
    apart, pictures = 0.0, shown.pictures()
    for images, labels in shown.batches():
        given = [images]
        if levels is not None:
            some = list(islice(pictures, len(images)))
            found.same.extend(levels.compare(some, images))
            given = [torch.from_numpy(one)[None] for one in some]
        made = [run_named(whole, {IMAGES: one}) for one in given]
        logits = torch.cat([outputs[LOGITS] for outputs in made])
        if ends.softmax:
            shares = torch.cat([outputs[SHARES] for outputs in made])
            apart = max(apart, float((shares - logits.double().softmax(1)).abs().max()))
        found.whole.append(logits)
        found.alone.append(run(network, images))
        found.integer.append(shown.integer(images).float().cpu())
        found.labels.append(labels.cpu())
    return _report(ends, levels, apart, found)


def _report(ends: Ends, levels: "_Levels | None", apart: float, found: _Found) -> EndsReport:
    whole, alone, integer, labels = (
        torch.cat(part) for part in (found.whole, found.alone, found.integer, found.labels)
    )
    figures = agreement(alone, whole)
    hits = whole.argmax(1) == integer.argmax(1)
    same = torch.tensor(found.same, dtype=torch.bool)
    wrong = [judge(figures, whole)]
    if levels is not None and levels.largest > MOST_LEVELS:
        wrong.insert(
            0,
            f"pictures are resized otherwise than qtool does, by up to {levels.largest:.3g} grey "
            f"levels of 255; export without --preprocess",
        )
    if not apart <= SAME:
        wrong.append(f"shares differ from the softmax of the logits by {apart:.3g}")
    return EndsReport(
        preprocess=ends.preprocess,
        softmax=ends.softmax,
        images=len(labels),
        top1_agreement=float(hits.double().mean()),
        accuracy_runtime=accuracy_of(whole, labels),
        max_abs_difference=figures["max_abs_difference"],
        max_grey_difference=None if levels is None else levels.largest,
        grey_difference_share=None if levels is None else levels.share,
        disagreement="; ".join(filter(None, wrong)),
        same_images=None if levels is None else int(same.sum()),
        same_agreement=float(hits[same].double().mean()) if bool(same.any()) else None,
    )


class _Levels:
    """How far what a file makes of pictures is from what qtool makes of them, in grey levels."""

    def __init__(self, path: Path, rule: Preprocess | None, runtime: Runtime) -> None:
        assert rule is not None
        alone = preparing_alone(read_back(path))
        self._session = runtime.open(alone.SerializeToString())
        self._level = torch.from_numpy(rule.scaled(rule.std)).reshape(-1, 1, 1)
        self.largest = 0.0
        self._values = self._off = 0

    @property
    def share(self) -> float:
        """Of values, half a level or more away."""
        return self._off / max(1, self._values)

    def compare(self, pictures: list[Array], prepared: Tensor) -> Iterator[bool]:
        """Tell of each picture whether it becomes what qtool makes of it, one of [B, C, H, W]."""
        for picture, expected in zip(pictures, prepared.cpu(), strict=True):
            made = run(self._session, torch.from_numpy(picture)[None])[0]
            if made.shape != expected.shape:
                sizes = f"{list(made.shape)}, not {list(expected.shape)}"
                raise ExportError(f"a picture {list(np.shape(picture))} is prepared as {sizes}")
            off = (made - expected).abs() * self._level
            self.largest = max(self.largest, float(off.max()))
            self._off += int((off >= HALF).sum())
            self._values += off.numel()
            yield float(off.max()) < HALF
