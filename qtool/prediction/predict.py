"""Pictures -> classes and shares, best first; files that cannot be read are named, others go on."""

import csv
from collections.abc import Callable, Iterator, Sequence
from io import StringIO
from pathlib import Path

import numpy as np

from qtool.errors import DataError, InputError
from qtool.files.whole import refuse_unless_writable, write_text
from qtool.images.files import SUFFIXES, images_in, read_image
from qtool.images.preprocess import Preprocess
from qtool.prediction.classifier import Array, Classifier, name_of
from qtool.prediction.onnx_file import open_onnx
from qtool.reports.predictions import ClassShare, FailedImage, PredictedImage, Prediction

AT_ONCE = 32  # images
BYTES_AT_ONCE = 2**26  # of them, unless one alone has more
NOT_FINITE = "the network gives numbers that are not finite"


def predict_onnx(
    model: Path, images: Sequence[Path], *, top: int = 5, csv_file: Path | None = None
) -> Prediction:
    """ONNX file and pictures -> classes and shares, without torch.

    Args:
        model: the file.
        images: files, or folders of them.
        top: classes of each image, best first.
        csv_file: where the same is written, a line for each class of each image.

    Raises:
        InputError: If there is no such file or picture, or the file does not say how pictures are
            prepared.
    """
    return predicted(lambda: open_onnx(model), images, top=top, csv_file=csv_file)


def predicted(
    open_model: Callable[[], Classifier],
    images: Sequence[Path],
    *,
    top: int = 5,
    csv_file: Path | None = None,
) -> Prediction:
    """Return what a classifier says of pictures.

    Args:
        open_model: opens it, once there is something to ask it.
        images: files, or folders of them.
        top: classes of each image, best first.
        csv_file: where the same is written, a line for each class of each image.

    Raises:
        InputError: If there is no such picture, or nothing can be written there.
    """
    if csv_file is not None:
        refuse_unless_writable(csv_file, "--csv names a file")
    paths = [path for given in images for path in _pictures_of(given)]
    model = open_model()
    assert model.usage.preprocess is not None
    found: list[PredictedImage] = []
    failed: list[FailedImage] = []
    for files, batch in _batches(model, model.usage.preprocess, paths, failed):
        for path, row in zip(files, _run(model, batch), strict=True):
            if np.isfinite(row).all():
                found.append(PredictedImage(file=str(path), classes=_best(model, row, top)))
            else:
                failed.append(FailedImage(file=str(path), why=NOT_FINITE))
    told = {"failed": failed} if failed else {}
    order = {str(path): place for place, path in enumerate(paths)}
    found.sort(key=lambda image: order[image.file])
    result = Prediction(model=model.source, images=found, **told)
    if csv_file is not None:
        write_text(csv_file, _as_csv(result))
    return result


def _pictures_of(given: Path) -> list[Path]:
    """Return a file itself, or the image files in a folder.

    Raises:
        InputError: If there is none.
    """
    if given.is_dir():
        found = images_in(given)
        if not found:
            ends = ", ".join(sorted(SUFFIXES))
            raise InputError(f"{given}: holds no images; their names end in {ends}")
        return found
    if not given.exists():
        raise InputError(f"{given}: no such file or folder; give images, or folders of them")
    return [given]


def _batches(
    model: Classifier, rule: Preprocess, paths: Sequence[Path], failed: list[FailedImage]
) -> Iterator[tuple[list[Path], Array]]:
    """Yield pictures of one size as the network takes them; those that fail are kept in a list."""
    files: list[Path] = []
    waiting: list[Array] = []
    for path in paths:
        try:
            one = model.prepare(read_image(path, rule.channels))
        except DataError as error:
            failed.append(FailedImage(file=str(path), why=str(error).removeprefix(f"{path}: ")))
            continue
        full = len(waiting) == AT_ONCE or (len(waiting) + 1) * one.nbytes > BYTES_AT_ONCE
        if waiting and (full or one.shape != waiting[0].shape):
            yield files, np.stack(waiting)
            files, waiting = [], []
        files.append(path)
        waiting.append(one)
    if waiting:
        yield files, np.stack(waiting)


def _run(model: Classifier, batch: Array) -> Array:
    """Return the logits of a batch, [B, classes]; a fixed number of images is filled up."""
    size = model.batch or len(batch)
    rows = []
    for start in range(0, len(batch), size):
        part = batch[start : start + size]
        missing = size - len(part)
        full = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        rows.append(model.logits(full)[: len(part)])
    return np.concatenate(rows)


def _best(model: Classifier, logits: Array, top: int) -> list[ClassShare]:
    """Return the classes with the largest shares, best first; equal ones by their number."""
    shares = model.usage.shares(logits)
    order = np.argsort(-shares, kind="stable")[:top].tolist()
    return [
        ClassShare(name=name_of(model.usage, index), index=index, share=float(shares[index]))
        for index in order
    ]


def _as_csv(result: Prediction) -> str:
    lines = StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["file", "rank", "class", "index", "share"])
    for image in result.images:
        for rank, one in enumerate(image.classes, start=1):
            writer.writerow([image.file, rank, one.name, one.index, one.share])
    return lines.getvalue()
