"""Folders of image files, one folder per class.

Only the names are read here; `qtool.data.file_batches` opens the files when they are needed.
"""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from qtool.data.bad_files import BadFiles, skip_unreadable
from qtool.data.class_names import imagenet_names
from qtool.data.layouts import (
    Layout,
    classes_said,
    layout_of,
    listed,
    loose_images,
    subfolders,
)
from qtool.data.root import DataRoot
from qtool.data.sources import (
    IMAGENET_CLASSES,
    DataSource,
    FileSplit,
    make_source,
    split_files,
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
    bad_files: BadFiles = "refuse",
) -> DataSource:
    """Read image files under `root`/`folder`, one folder per class.

    Args:
        root: Folder of data sets.
        folder: Holds train/ and val/ with a folder per class each (or training/, valid/,
            validation/, dev/, test/, in upper or lower case; a test half judges where nothing else
            does); or only one of them, or the folders of classes themselves, which are then split,
            the same way every time.
        labels: folders: classes count the folders in alphabetical order. imagenet: the 1000
            classes of ImageNet, from folders named by wnid (n01440764) or class index
            (000_n01440764).
        validation_share: Share of the images set aside where qtool splits.
        bad_files: Files that cannot be read as images: refuse them all, by name, when the first is
            met, or skip: read every file beforehand, and leave them out.
    """
    allowed = DataRoot.of(root)
    layout = layout_of(allowed.named(folder), allowed)
    names = _class_folders(layout.train)
    notes = [] if labels == "imagenet" else [classes_said(names)]
    train = _read_half(layout.train, labels, names, allowed)
    judge = layout.validation
    validation = judge and _read_half(judge, labels, names, allowed, judges=True)
    if bad_files == "skip":
        all_classes = train.used()
        train, validation, said = skip_unreadable(train, validation)
        notes += said
        if gone := all_classes - train.used():
            lost = [str(n) if labels == "imagenet" else names[n] for n in sorted(gone)]
            raise DataError(f"{layout.train}: no image of {listed(lost)} can be read")
    if judge and validation:
        if labels == "folders" and (lacking := train.used() - validation.used()):
            notes.append(f"{judge}: no images of {listed([names[n] for n in sorted(lacking)])}")
    else:
        train, validation = split_files(train, validation_share, layout.train)
        notes.append(
            f"{layout.train} is split by a fixed seed: "
            f"{len(train):,} training and {len(validation):,} validation images"
        )
    notes += layout.notes + _left_out(layout)
    if labels == "imagenet":
        names = list(imagenet_names())
    return make_source(
        "image_folder", train, validation, classes=len(names), note="\n".join(notes), names=names
    )


def _left_out(layout: Layout) -> list[str]:
    """Say how many images lie beside the folders of classes, where they have no class."""
    counts = {path: loose_images(path) for path in (layout.train, layout.validation) if path}
    return [
        f"{path}: {count:,} {'image lies' if count == 1 else 'images lie'} beside the folders of "
        "classes, and none is used"
        for path, count in counts.items()
        if count
    ]


def _class_folders(base: Path) -> list[str]:
    if not base.is_dir():
        raise DataError(
            f"{base}: no such folder; data.folder names a folder of images under data.root "
            "(or under --data-root, or the folder in the environment variable QTOOL_DATA)"
        )
    if not (names := subfolders(base)):
        raise DataError(
            f"{base}: holds no folders; needed are train/ and val/, or one folder per class "
            "(data.name: image_table reads a CSV of classes)"
        )
    return names


def _read_half(
    base: Path, labels: str, known: list[str], allowed: DataRoot, *, judges: bool = False
) -> FileSplit:
    """List the images of every class folder under `base`.

    Args:
        base: Holds one folder per class.
        labels: As in `image_folder`.
        known: The class folders of the training half, in the order of their labels.
        allowed: The folder of data sets.
        judges: Classes may have no images.
    """
    names = _class_folders(base)
    if labels == "imagenet":
        label_of = _imagenet_labels(base, names)
    elif unknown := [name for name in names if name not in known]:
        raise DataError(f"{base}: {listed(unknown)} not among the classes of the training images")
    else:
        label_of = {name: label for label, name in enumerate(known)}
    folders = {name: allowed.inside(base / name) for name in names}
    files = {name: allowed.all_inside(images_in(path)) for name, path in folders.items()}
    empty = [name for name, paths in files.items() if not paths]
    if empty and not (judges and len(empty) < len(files)):
        raise DataError(
            f"{base}: no images in {listed(empty)}; images end in {', '.join(sorted(SUFFIXES))}"
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
            f"{base}: cannot tell the ImageNet class of {listed(unknown)}; start the name with the "
            "class index, such as 000_n01440764 (a bare wnid is enough where all 1000 folders are "
            "there, or for the ten of Imagenette), or set data.labels to folders"
        )
    return label_of
