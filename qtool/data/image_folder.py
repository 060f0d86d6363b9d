"""Folders of image files, one folder per class.

Only the names are read here; `qtool.data.file_batches` opens the files when they are needed.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from qtool.data.class_names import imagenet_names
from qtool.data.root import DataRoot
from qtool.data.sources import (
    IMAGENET_CLASSES,
    DataSource,
    FileSplit,
    fixed_split,
    make_source,
)
from qtool.errors import DataError
from qtool.images.files import SUFFIXES, images_in

# The ten classes of Imagenette (github.com/fastai/imagenette) among the 1000 of ImageNet.
IMAGENETTE = {
    "n01440764": 0,
    "n02102040": 217,
    "n02979186": 482,
    "n03000684": 491,
    "n03028079": 497,
    "n03394916": 566,
    "n03417042": 569,
    "n03425413": 571,
    "n03445777": 574,
    "n03888257": 701,
}


def image_folder(
    root: Path | DataRoot,
    *,
    folder: str = ".",
    labels: Literal["folders", "imagenet"] = "folders",
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2,
) -> DataSource:
    """Read image files under `root`/`folder`, one folder per class.

    Args:
        root: Folder of data sets.
        folder: Holds train/ and val/ with a folder per class each; or only one of the two, or the
            folders of classes themselves, which are then split, the same way every time.
        labels: folders: classes count the folders in alphabetical order. imagenet: the 1000
            classes of ImageNet, from folders named by wnid (n01440764) or class index
            (000_n01440764).
        validation_share: Share of the images set aside where qtool splits.
    """
    allowed = DataRoot.of(root)
    base = allowed.named(folder)
    possible = {half: allowed.inside(base / half) for half in ("train", "val")}
    halves = {half: path for half, path in possible.items() if _has_class_folders(path)}
    note = ""
    if len(halves) == 2:
        names = _class_folders(halves["train"])
        train = _read_half(halves["train"], labels, names, allowed)
        validation = _read_half(halves["val"], labels, names, allowed)
    else:
        whole = next(iter(halves.values()), base)
        names = _class_folders(whole)
        images = _read_half(whole, labels, names, allowed)
        train, validation = _split(images, validation_share, whole)
        note = (
            f"{whole} is split by a fixed seed: "
            f"{len(train):,} training and {len(validation):,} validation images"
        )
    if labels == "imagenet":
        names = list(imagenet_names())
    return make_source(
        "image_folder", train, validation, classes=len(names), note=note, names=names
    )


def _class_folders(base: Path) -> list[str]:
    if not base.is_dir():
        raise DataError(
            f"{base}: no such folder; data.folder names a folder of images under data.root "
            "(or under --data-root, or the folder in the environment variable QTOOL_DATA)"
        )
    names = sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise DataError(
            f"{base}: holds no folders; needed are train/ and val/, or one folder per class"
        )
    return names


def _has_class_folders(base: Path) -> bool:
    return base.is_dir() and any(path.is_dir() for path in base.iterdir())


def _read_half(base: Path, labels: str, known: list[str], allowed: DataRoot) -> FileSplit:
    """List the images of every class folder under `base`.

    Args:
        base: Holds one folder per class.
        labels: As in `image_folder`.
        known: The class folders of the training half, in the order of their labels.
        allowed: The folder of data sets.
    """
    names = _class_folders(base)
    if labels == "imagenet":
        label_of = _imagenet_labels(base, names)
    elif unknown := [name for name in names if name not in known]:
        raise DataError(f"{base}: {_few(unknown)} not among the classes of the training images")
    else:
        label_of = {name: label for label, name in enumerate(known)}
    folders = {name: allowed.inside(base / name) for name in names}
    files = {name: allowed.all_inside(images_in(path)) for name, path in folders.items()}
    if empty := [name for name, paths in files.items() if not paths]:
        raise DataError(
            f"{base}: no images in {_few(empty)}; images end in {', '.join(sorted(SUFFIXES))}"
        )
    pairs = [(path, label_of[name]) for name, paths in files.items() for path in paths]
    return FileSplit([path for path, _ in pairs], [label for _, label in pairs])


def _imagenet_labels(base: Path, names: list[str]) -> dict[str, int]:
    """Map folder names to ImageNet's class indices, which follow the sorted wnids."""
    wnids = [name for name in names if re.fullmatch(r"n\d{8}", name)]
    by_wnid = IMAGENETTE
    if len(wnids) == IMAGENET_CLASSES:
        by_wnid = {wnid: index for index, wnid in enumerate(wnids)}
    label_of, unknown = {}, []
    for name in names:
        numbered = re.fullmatch(r"(\d{1,3})(_.*)?", name)
        label = int(numbered[1]) if numbered else by_wnid.get(name)
        if label is None:
            unknown.append(name)
        else:
            label_of[name] = label
    if unknown:
        raise DataError(
            f"{base}: cannot tell the ImageNet class of {_few(unknown)}; start the name with the "
            "class index, such as 000_n01440764 (a bare wnid is enough where all 1000 folders are "
            "there, or for the ten of Imagenette), or set data.labels to folders"
        )
    return label_of


def _split(images: FileSplit, share: float, base: Path) -> tuple[FileSplit, FileSplit]:
    if len(images) < 2:
        raise DataError(f"{base}: holds one image; at least two are needed, to train and to judge")
    validation = min(max(round(share * len(images)), 1), len(images) - 1)
    train_indices, held_out = fixed_split(images.labels, validation)
    return images.subset(train_indices), images.subset(held_out)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
