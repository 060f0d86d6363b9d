"""What a finished run's network says of each validation image: validation.npz in its folder.

`right`: packed bits, which images it gets right. `prediction`: its classes, uint16 (uint32 beyond
65,536 classes). `images`: SHA-256 of what the images are, in order. `label`: what they are, as
`prediction`; older files have none. Comparisons read it: which images two networks differ on tells
more than their accuracies; a run's page shows which classes it takes for which.
"""

import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qtool.data.fingerprint import digest_of_images
from qtool.data.loaders import Loaders
from qtool.errors import InputError
from qtool.files.npz import arrays_of
from qtool.files.reading import WRONG_CONTENTS
from qtool.files.whole import write_atomically
from qtool.quantizers.control import without_blends
from qtool.runs.kept.folder import RunFolder
from qtool.training.watcher import Watcher
from qtool.world.world import World

KEYS = ("right", "prediction", "images")
LABEL = "label"
Rows = list[tuple[list[int], list[int]]]  # of each batch: classes and labels of its rows


@dataclass(frozen=True)
class Answers:
    """What a network says of the validation images, in their order.

    Attributes:
        right: which it gets right, bool [images].
        prediction: class of each, uint16 or uint32 [images].
        images: SHA-256 of what they are.
        label: class that each is, like `prediction`; None in a file of before it was kept.
    """

    right: NDArray[np.bool_]
    prediction: NDArray[np.unsignedinteger]
    images: str
    label: NDArray[np.unsignedinteger] | None = None

    @classmethod
    def of(cls, predictions: Tensor, labels: Tensor, images: str) -> "Answers":
        """Return answers by classes and labels, int64 [images] each."""
        wide = len(predictions) and int(torch.maximum(predictions, labels).max()) >= 2**16
        kind = np.uint32 if wide else np.uint16
        said, wanted = (each.cpu().numpy().astype(kind) for each in (predictions, labels))
        return cls((predictions == labels).cpu().numpy(), said, images, wanted)

    def write(self, path: Path) -> None:
        """Write the file in one move; the same answers give the same bytes.

        Raises:
            WriteError: If it cannot be written there.
        """
        right, images = np.packbits(self.right), np.array(self.images)
        saved = partial(np.savez, right=right, prediction=self.prediction, images=images)
        if self.label is not None:
            saved = partial(saved, label=self.label)

        def save(place: Path) -> None:
            with place.open("wb") as file:
                saved(file)

        write_atomically(path, save)


def read_answers(folder: RunFolder) -> Answers | None:
    """Return what a finished run's network says; None of a run of before such files.

    Raises:
        InputError: If the file is damaged, or of another network than the summary.
    """
    path = folder.answers
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            held = arrays_of(file, (*KEYS, LABEL))
        answers = _checked(*(held[key] for key in KEYS), label=held.get(LABEL))
        summary = folder.finished_summary()
        reached = None if summary is None else summary.validation_accuracy
        if reached is not None and abs(float(answers.right.mean()) - reached) > 1e-6:
            raise ValueError(f"right on {answers.right.mean():.4%}, and the run on {reached:.4%}")
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, *WRONG_CONTENTS) as error:
        raise InputError(f"{path}: damaged: {error}") from error
    return answers


def _checked(
    right: np.ndarray, prediction: np.ndarray, images: np.ndarray, *, label: np.ndarray | None
) -> Answers:
    """Return answers as a file holds them.

    Raises:
        ValueError: If they are none.
    """
    if prediction.dtype.name not in ("uint16", "uint32") or prediction.ndim != 1:
        raise ValueError(f"prediction is {prediction.dtype} {list(prediction.shape)}")
    count = len(prediction)
    if not count or right.dtype != np.uint8 or right.shape != (-(-count // 8),):
        raise ValueError(f"right is {right.dtype} {list(right.shape)} of {count} images")
    if images.dtype.kind != "U" or images.ndim:
        raise ValueError("images is no text")
    hits = np.unpackbits(right, count=count).astype(np.bool_)
    if label is not None:
        if label.dtype != prediction.dtype or label.shape != prediction.shape:
            raise ValueError(f"label is {label.dtype} {list(label.shape)} of {count} images")
        if not np.array_equal(label == prediction, hits):
            raise ValueError("right is not where label and prediction are the same")
    return Answers(hits, prediction, str(images), label)


class AnswerRecorder(Watcher):
    """Keeps what a network says of the validation images after the last epoch that it saw."""

    def __init__(self) -> None:
        self._now: list[tuple[Tensor, Tensor]] = []
        self._last: list[tuple[Tensor, Tensor]] = []

    def validated(self, logits: Tensor, labels: Tensor) -> None:
        """Note what the model says of a batch."""
        if not labels.is_floating_point():
            self._now.append((logits.argmax(1), labels))

    def end_epoch(self, epoch: int, step: int) -> None:
        """Keep what was said, and nothing of before."""
        self._last, self._now = self._now, []

    def found(self, world: World) -> tuple[Tensor, Tensor] | None:
        """Return classes and labels of all processes [images], in order; None where none was seen.

        Process r has rows r, r + size, ... of each batch, and of the last one perhaps none.
        """
        own = [(said.tolist(), labels.tolist()) for said, labels in self._last]
        told = [own]
        if world.size > 1:
            told = [json.loads(word) for word in world.told(json.dumps(own))]
        if not any(told):
            return None
        return _together(told, 0), _together(told, 1)


def _together(told: list[Rows], at: int) -> Tensor:
    """Return classes (`at` 0) or labels (1) of all processes' batches, in order."""
    rows = list[int]()
    for batch in range(max(map(len, told))):
        held = [own[batch][at] if batch < len(own) else [] for own in told]
        whole = [0] * sum(map(len, held))
        for rank, part in enumerate(held):
            whole[rank :: len(told)] = part
        rows += whole
    return torch.tensor(rows)


@torch.no_grad()
def keep_answers(
    model: nn.Module, data: Loaders, folder: RunFolder, found: tuple[Tensor, Tensor] | None
) -> None:
    """Write what a finished network says, where labels are classes.

    Args:
        model: as it was judged, in evaluation mode.
        data: that it was judged by.
        folder: of the run.
        found: what it said when it was judged, classes and labels; None where that is not known,
            as of a run that was stopped after its last epoch: it is asked again.

    Raises:
        WriteError: If the file cannot be written.
    """
    if found is None:
        said, right = list[Tensor](), list[Tensor]()
        with without_blends(model.eval()):
            for images, labels in data.validation.batches(0):
                if labels.is_floating_point():
                    return
                said.append(model(images).float().argmax(1))
                right.append(labels)
        found = torch.cat(said), torch.cat(right)
    Answers.of(*found, digest_of_images(data)).write(folder.answers)
