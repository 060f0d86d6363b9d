"""How people lay out folders of images: halves by many names, or the folders of classes alone.

Only names are read. Nothing is left out in silence: a layout says what of a folder is not used.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from qtool.data.root import DataRoot
from qtool.errors import DataError
from qtool.images.files import SUFFIXES

# As torchvision, Kaggle, Roboflow, fastai and Keras call them; upper and lower case are alike.
HALVES = {
    "train": ("train", "training", "trainset"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "testset"),
}
LEFT_BY_TOOLS = ("__macosx", "$recycle.bin", "lost+found")
MOST_NAMED = 10
MOST_CLASSES = 30  # named to the user


@dataclass(frozen=True)
class Layout:
    """Which folders hold what.

    Attributes:
        base: in which they lie.
        train: has a folder for each class.
        validation: likewise, for what judges; None where `train` is to be split in two.
        notes: what is to be said of it: what is not used, and why.
    """

    base: Path
    train: Path
    validation: Path | None = None
    notes: list[str] = field(default_factory=list)


def layout_of(base: Path, allowed: DataRoot | None = None) -> Layout:
    """Return the layout of a folder of images.

    It holds a half to train on and one to judge by, each with a folder for each class; or one half
    alone, or the folders of classes. Where nothing else judges, a test half does. A folder that
    holds nothing but one other that has halves is that other one.

    Args:
        base: the folder.
        allowed: the folder of data sets that may be read.

    Raises:
        DataError: If two folders are the same half by their names, or may not be read, or all
            folders are halves that hold no folders of classes.
    """
    allowed = allowed or DataRoot(base)
    halves, inside = _halves(base, allowed), subfolders(base)
    if not halves and len(inside) == 1:
        deeper = allowed.inside(base / inside[0])
        if halves := _halves(deeper, allowed):
            base, inside = deeper, subfolders(deeper)
    if not halves:
        _refuse_halves_without_classes(base, inside)
    if not halves or (set(halves) == {"test"} and len(inside) > 1):  # a class may be called so
        return Layout(base, base)
    notes = []
    train, judge = _chosen(halves)
    chosen = [half for half in (train, judge) if half is not None]
    if (test := halves.get("test")) and test not in chosen:
        notes.append(f"{test.name}/ is there and is not used: {judge or train} judges")
    if judge is not None and judge == halves.get("test"):
        notes.append(f"{judge.name}/ judges, for there is no validation folder")
    others = [name for name in inside if base / name not in halves.values()]
    if others:
        notes.append(f"{base}: not used: {listed([f'{name}/' for name in others])}")
    return Layout(base, train, judge, notes)


def _refuse_halves_without_classes(base: Path, names: list[str]) -> None:
    kinds = {kind_of(name) for name in names}
    if "train" in kinds and len(kinds) > 1 and None not in kinds:
        raise DataError(
            f"{base}: {listed([f'{name}/' for name in names])} hold no folders of classes; needed "
            "is one for each class in each of them (data.name: image_table reads a CSV of classes)"
        )


def kind_of(name: str) -> str | None:
    """Return which half is called so: train, validation or test; None where none is."""
    return next((kind for kind, names in HALVES.items() if name.lower() in names), None)


def _chosen(halves: dict[str, Path]) -> tuple[Path, Path | None]:
    """Return which half is trained on and which one judges, None where there is one half alone."""
    judge = halves.get("validation") or halves.get("test")
    train = halves.get("train")
    if train is not None:
        return train, judge
    assert judge is not None
    return judge, None


def _halves(base: Path, allowed: DataRoot) -> dict[str, Path]:
    """Return the halves in a folder that hold folders themselves, by what they are for."""
    found: dict[str, Path] = {}
    for name in subfolders(base):
        kind = kind_of(name)
        if kind is None or not subfolders(allowed.inside(base / name)):
            continue
        if kind in found:
            raise DataError(
                f"{base}: both {found[kind].name}/ and {name}/ are there for {kind}; rename one, "
                "or put it elsewhere"
            )
        found[kind] = base / name
    return found


def subfolders(base: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, but those that are hidden or of tools.

    Where it is no folder there are none.
    """
    if not base.is_dir():
        return []
    with os.scandir(base) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir())
    return [n for n in names if not n.startswith(".") and n.lower() not in LEFT_BY_TOOLS]


def loose_images(base: Path) -> int:
    """Count the images that lie in a folder itself, in none of its folders."""
    with os.scandir(base) as entries:
        files = [entry.name for entry in entries if not entry.name.startswith(".")]
    return sum(Path(name).suffix.lower() in SUFFIXES for name in files)


def classes_said(names: list[str]) -> str:
    """Return what is said of the classes of a data set."""
    if len(names) == 1:
        return f"1 class: {names[0]}; there is nothing to tell apart"
    return f"{len(names)} classes: {listed(names, MOST_CLASSES)}"


def listed(names: list[str], most: int = MOST_NAMED) -> str:
    """Return names with commas, at most so many of them and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
