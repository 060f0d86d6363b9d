"""Training images that are held out: which, in what shares, and that nobody trains on them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from qtool.data.batches import Batches
from qtool.data.fingerprint import changes, fingerprint
from qtool.data.holdout import hold_out, holdout_indices
from qtool.data.loaders import Loaders, make_loaders
from qtool.data.sources import DataSource, FileSplit, Split
from qtool.errors import DataError

CPU = torch.device("cpu")


def labels_of(counts: dict[int, int]) -> Tensor:
    labels = [label for label, count in counts.items() for _ in range(count)]
    return torch.tensor(labels)[torch.randperm(len(labels))]


@pytest.mark.parametrize(
    ("counts", "share", "held"),
    [
        ({0: 50, 1: 30, 2: 20}, 0.1, {0: 5, 1: 3, 2: 2}),
        # floors 3, 1, 0, 0 of round(5.7) = 6; the remainders .9 and .5 are the largest
        ({0: 10, 1: 5, 2: 3, 7: 1}, 0.3, {0: 3, 1: 2, 2: 1}),
        ({0: 10, 1: 1}, 0.9, {0: 9}),  # the only image of a class is trained on
        ({0: 3}, 0.5, {0: 2}),
    ],
)
def test_classes_are_held_out_in_proportion(
    counts: dict[int, int], share: float, held: dict[int, int]
) -> None:
    labels = labels_of(counts)
    kept, out = holdout_indices(labels, share)

    assert Counter(labels[out].tolist()) == held
    assert sorted([*kept.tolist(), *out.tolist()]) == list(range(len(labels)))
    for indices in (kept, out):
        assert indices.tolist() == sorted(indices.tolist())


def test_numbers_to_be_met_have_no_classes() -> None:
    kept, out = holdout_indices(torch.randn(40), 0.25)
    assert (len(kept), len(out)) == (30, 10)


def test_images_of_a_class_are_taken_from_anywhere_in_it() -> None:
    out = holdout_indices(torch.zeros(1000, dtype=torch.int64), 0.5)[1]
    assert 100 < int((out < 250).sum()) < 150


@pytest.mark.parametrize(("samples", "share", "what"), [(4, 0.1, "none"), (1, 0.9, "none")])
def test_a_share_that_leaves_nothing_is_refused(samples: int, share: float, what: str) -> None:
    split = Split(torch.zeros(samples, 1, 2, 2, dtype=torch.uint8), torch.zeros(samples).long())
    with pytest.raises(DataError, match=rf"^toy: data.holdout: {share} of {samples} .*{what}"):
        hold_out(split, share, "toy")


def of_memory() -> DataSource:
    """Return 40 images of 2 classes, each of one grey of its own."""
    grey = torch.arange(40, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    split = Split(grey, torch.arange(40) % 2)
    return DataSource("toy", split, split.subset(torch.arange(6)), 2, (0.0,), (1.0,), 4, 0, False)


def of_files(folder: Path) -> DataSource:
    """Return the same as files."""
    paths = [folder / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(path)
    split = FileSplit(paths, [number % 2 for number in range(40)])
    mean, std = (0.0,) * 3, (1.0,) * 3
    return DataSource("toy", split, split.subset(torch.arange(6)), 2, mean, std, 4, 0, False)


def loaders(source: DataSource, seed: int = 0, train_samples: int | None = None) -> Loaders:
    return make_loaders(
        source,
        batch_size=4,
        image_size=4,
        train_samples=train_samples,
        holdout=0.25,
        seed=seed,
        device=CPU,
        augment=False,
        workers=0,
    )


def greys(batches: Batches | None, epochs: int = 1) -> list[int]:
    """Return which images are in the batches of some epochs."""
    assert batches is not None
    images = [part for epoch in range(epochs) for part, _ in batches.batches(epoch)]
    return (torch.cat(images)[:, 0, 0, 0] * 255).round().int().tolist()


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_nobody_trains_on_what_is_held_out_whatever_the_seed(kind: str, tmp_path: Path) -> None:
    source = of_memory() if kind == "memory" else of_files(tmp_path)
    first, second = loaders(source), loaders(source, seed=1)

    assert first.holdout is not None
    held = greys(first.holdout)
    assert held == sorted(set(held)) == greys(second.holdout)
    assert sum(grey % 2 for grey in held) == len(held) / 2 == 5
    for made in (first, second):
        trained = greys(made.train, epochs=12)  # two of 30 are left out of an epoch's batches
        assert set(trained) == set(range(40)) - set(held)
    assert sorted(greys(first.holdout.part(0, 2)) + greys(first.holdout.part(1, 2))) == held


def test_the_share_is_of_the_samples_that_the_recipe_takes() -> None:
    made = loaders(of_memory(), train_samples=16)
    whole = set(greys(loaders(of_memory(), train_samples=16).train, 9)) | set(greys(made.holdout))
    assert len(greys(made.holdout)) == 4
    assert len(whole) == 16


def test_what_is_held_out_is_no_training_image_for_the_record_of_the_data() -> None:
    held, plain = (
        fingerprint(
            make_loaders(
                of_memory(),
                batch_size=4,
                image_size=4,
                train_samples=None,
                holdout=share,
                seed=0,
                device=CPU,
            )
        )
        for share in (0.25, 0.0)
    )
    assert (held.train.images, held.holdout and held.holdout.images) == (30, 10)
    assert "holdout" not in plain.to_json()
    assert changes(plain, held) == ["training images: 40 before, 30 now"]
