"""Images and labels in a NumPy .npz file: x_train, y_train, x_test, y_test.

Nothing in the file is guessed at: what does not fit is reported, all of it at once.
"""

import math
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from qtool.data.layouts import listed
from qtool.data.root import DataRoot
from qtool.data.sources import DataSource, Split, channel_statistics, make_source
from qtool.errors import DataError
from qtool.files.npz import arrays_of

KEYS = ("x_train", "y_train", "x_test", "y_test")
NPY = b"\x93NUMPY"  # how a file of one array begins
LARGEST_LABEL = 99_999


def arrays(
    root: Path | DataRoot,
    *,
    file: str,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    labels: Literal["numbers", "used"] = "numbers",
) -> DataSource:
    """Read images from `file`, an .npz under `root`.

    Args:
        root: Folder of data sets.
        file: Path of the .npz: x_train and x_test are uint8 [N, H, W] or [N, H, W, C] with C = 1
            or 3 and H = W; y_train and y_test are whole numbers from 0, [N] or [N, 1].
        mean: Per channel, of images scaled to 0..1; of x_train where absent.
        std: Likewise.
        labels: numbers: a network has an output for each number from 0 to the largest label. used:
            for each label that occurs, in ascending order, so that labels may start at 1 or have
            gaps; the classes are called by those labels.
    """
    path = DataRoot.of(root).named(file)
    train, validation = read_npz(path)
    used = torch.cat([train.labels, validation.labels]).unique()
    names, note = list[str](), ""
    if labels == "used":
        train, validation = (
            Split(half.images, torch.searchsorted(used, half.labels))
            for half in (train, validation)
        )
        names = [str(label) for label in used.tolist()]
    else:
        note = _unused(path, used)
    measured_mean, measured_std = channel_statistics(train.images)
    source = make_source(
        "arrays",
        train,
        validation,
        note=note,
        names=names,
        classes=len(names) or int(used.max()) + 1,
        mean=tuple(measured_mean if mean is None else mean),
        std=tuple(measured_std if std is None else std),
        image_size=train.images.shape[-1],
    )
    _check_statistics(source, path, channels=train.images.shape[1])
    return source


def _unused(path: Path, used: Tensor) -> str:
    """Say which numbers below the largest label no image has; `used` ascends."""
    classes = int(used[-1]) + 1
    if len(used) == classes:
        return ""
    missing = sorted(set(range(classes)) - set(used.tolist()))
    return (
        f"{path}: no image is labelled {listed(list(map(str, missing)))}; the network has an "
        f"output for each of the {classes} numbers from 0 to {classes - 1} "
        f"(data.labels: used takes the {len(used)} that occur)"
    )


def read_npz(path: Path) -> tuple[Split, Split]:
    """Return the training and validation images of an .npz file.

    Raises:
        DataError: If the file is missing or anything in it is not what `arrays` describes.
    """
    found = _open_npz(path)
    problems = [
        f"{key}: missing; the file holds {_listed(found)}" for key in KEYS if key not in found
    ]
    for key in KEYS:
        if key in found:
            problem = _image_problem if key.startswith("x") else _label_problem
            problems += [f"{key}: {why}" for why in problem(found[key])]
    _raise_listed(path, problems)
    _raise_listed(path, _disagreements(found))
    return _to_split(found["x_train"], found["y_train"]), _to_split(
        found["x_test"], found["y_test"]
    )


def _open_npz(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; data.file names an .npz file under data.root "
            "(or under --data-root, or the folder in the environment variable QTOOL_DATA)"
        )
    try:
        # Given a path, NumPy leaves the file open where it is damaged.
        with path.open("rb") as opened:
            if opened.read(len(NPY)) == NPY:
                raise DataError(f"{path}: holds one array; needed is an .npz with {_listed(KEYS)}")
            return arrays_of(opened, KEYS)
    except DataError:
        raise
    # A damaged archive fails in zipfile, zlib, struct or NumPy, each with errors of its own.
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as an .npz file without pickled objects ({error}); "
            "write it with numpy.savez(file, x_train=..., y_train=..., x_test=..., y_test=...)"
        ) from error


def _image_problem(images: np.ndarray) -> list[str]:
    shape = list(images.shape)
    if images.dtype != np.uint8:
        return [f"holds {images.dtype}; needed are uint8 values 0..255"]
    if len(shape) not in (3, 4):
        return [f"has shape {shape}; needed is [N, H, W] or [N, H, W, C]"]
    if 0 in shape:
        return [f"has shape {shape}; there is no image in it"]
    if len(shape) == 4 and shape[3] not in (1, 3):
        hint = "; move the channels to the end" if shape[1] in (1, 3) else ""
        return [f"has shape {shape}; needed is [N, H, W, C] with 1 or 3 channels{hint}"]
    if shape[1] != shape[2]:
        return [f"has images of {shape[1]} x {shape[2]} pixels; needed are square ones"]
    return []


def _label_problem(labels: np.ndarray) -> list[str]:
    if not np.issubdtype(labels.dtype, np.integer):
        return [f"holds {labels.dtype}; needed are whole numbers, one class per image"]
    if not (labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)):
        return [f"has shape {list(labels.shape)}; needed is [N]"]
    if labels.size and not (labels.min() >= 0 and labels.max() <= LARGEST_LABEL):
        return [
            f"runs from {labels.min()} to {labels.max()}; "
            f"classes count from 0, to {LARGEST_LABEL} at most"
        ]
    return []


def _disagreements(found: dict[str, np.ndarray]) -> list[str]:
    """Compare the arrays with each other, once each is right by itself."""
    problems = [
        f"{images} has {len(found[images])} images but {labels} has {len(found[labels])} labels"
        for images, labels in (("x_train", "y_train"), ("x_test", "y_test"))
        if len(found[images]) != len(found[labels])
    ]
    train, test = _image_shape(found["x_train"]), _image_shape(found["x_test"])
    if train != test:
        problems.append(f"images have shape {train} in x_train but {test} in x_test")
    return problems


def _image_shape(images: np.ndarray) -> list[int]:
    return [*images.shape[1:3], images.shape[3] if images.ndim == 4 else 1]


def _check_statistics(source: DataSource, path: Path, channels: int) -> None:
    for key, values in (("mean", source.mean), ("std", source.std)):
        if len(values) != channels:
            raise DataError(
                f"{path}: data.{key} has {len(values)} values; "
                f"the images have {channels} channel{'s' if channels > 1 else ''}"
            )
        if not all(math.isfinite(value) for value in values):
            raise DataError(f"{path}: data.{key}: {list(values)} has values that are not finite")
    if not all(value > 0 for value in source.std):
        raise DataError(
            f"{path}: std is {list(source.std)}, and images are divided by it; "
            "every value must be more than 0 (a channel of one single value has 0: set data.std)"
        )


def _to_split(images: np.ndarray, labels: np.ndarray) -> Split:
    with_channels = images if images.ndim == 4 else images[..., np.newaxis]
    channels_first = torch.from_numpy(with_channels).permute(0, 3, 1, 2).contiguous()
    return Split(channels_first, torch.from_numpy(labels.reshape(-1).astype(np.int64)))


def _listed(keys: object) -> str:
    names = [str(key) for key in keys] if isinstance(keys, (dict, tuple)) else []
    return ", ".join(names) or "none of the four"


def _raise_listed(path: Path, problems: list[str]) -> None:
    if len(problems) == 1:
        raise DataError(f"{path}: {problems[0]}")
    if problems:
        raise DataError("\n  ".join([f"{path}: {len(problems)} problems", *problems]))
