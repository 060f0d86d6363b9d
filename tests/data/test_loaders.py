"""Batches: their order, augmentation, normalisation, and what they must leave alone."""

import dataclasses
import gc
import multiprocessing
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from qtool.data import tensor_batches
from qtool.data.batches import Batches
from qtool.data.file_batches import FileBatches
from qtool.data.loaders import Loaders, make_loaders
from qtool.data.sources import DataSource, FileSplit, Split
from qtool.errors import DataError

CPU = torch.device("cpu")


def noise(samples: int, channels: int = 1, size: int = 8, seed: int = 0) -> Split:
    """Random images whose label is their index."""
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 256, (samples, channels, size, size), np.uint8)
    return Split(torch.from_numpy(images), torch.arange(samples))


def in_memory(
    samples: int = 20, *, channels: int = 1, padding: int = 2, flip: bool = True
) -> DataSource:
    return DataSource(
        name="noise",
        train=noise(samples, channels),
        validation=noise(7, channels, seed=1),
        classes=max(samples, 7),
        mean=(0.25, 0.5, 0.75)[:channels],
        std=(0.5, 0.25, 0.125)[:channels],
        image_size=8,
        crop_padding=padding,
        flip=flip,
        note="a note",
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = []
    for index in range(10):
        pixels = rng.integers(0, 256, (40 + index, 60 - index, 3), np.uint8)
        paths.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    return dataclasses.replace(
        in_memory(channels=3),
        train=FileSplit(paths, list(range(10))),
        validation=FileSplit(paths[:5], list(range(5))),
        image_size=224,
    )


def load(source: DataSource, **changes: Any) -> Loaders:
    arguments: dict[str, Any] = {
        "batch_size": 6,
        "image_size": None,
        "train_samples": None,
        "seed": 3,
        "device": CPU,
    }
    return make_loaders(source, **(arguments | changes))


def epoch_of(batches: Batches, epoch: int) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches.batches(epoch), strict=True)
    return torch.cat(images), torch.cat(labels)


def same(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_loaders_say_what_they_hold() -> None:
    loaders = load(in_memory(), image_size=16, channels=3)
    assert (loaders.classes, loaders.channels, loaders.image_size) == (20, 3, 16)
    assert loaders.note == "a note"
    images, labels = next(loaders.train.batches(0))
    assert (images.shape, images.dtype) == ((6, 3, 16, 16), torch.float32)
    assert (labels.shape, labels.dtype) == ((6,), torch.int64)


def test_an_epoch_depends_on_seed_and_epoch_only() -> None:
    loaders = load(in_memory())
    first = epoch_of(loaders.train, 4)
    epoch_of(loaders.train, 5)
    torch.manual_seed(99)
    assert same(first, epoch_of(loaders.train, 4))
    assert same(first, epoch_of(load(in_memory()).train, 4))
    assert not torch.equal(first[1], epoch_of(loaders.train, 5)[1])
    assert not torch.equal(first[1], epoch_of(load(in_memory(), seed=4).train, 4)[1])


def test_every_image_comes_once_and_a_last_short_batch_is_dropped_in_training() -> None:
    loaders = load(in_memory(20))
    assert (len(loaders.train), loaders.train.samples) == (3, 20)
    _, labels = epoch_of(loaders.train, 0)
    assert len(set(labels.tolist())) == 18
    _, all_labels = epoch_of(load(in_memory(18)).train, 0)
    assert sorted(all_labels.tolist()) == list(range(18))


def test_a_batch_larger_than_the_set_is_one_batch_of_all() -> None:
    loaders = load(in_memory(5), batch_size=64)
    assert len(loaders.train) == 1
    assert sorted(epoch_of(loaders.train, 0)[1].tolist()) == [0, 1, 2, 3, 4]


def test_validation_is_in_order_whole_and_the_same_in_every_epoch() -> None:
    source = in_memory()
    validation = load(source).validation
    images, labels = epoch_of(validation, 0)
    assert (len(validation), validation.samples) == (2, 7)
    assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6]
    expected = (noise(7, seed=1).images.numpy() / 255 - 0.25) / 0.5
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert same((images, labels), epoch_of(validation, 9))


def test_normalisation_is_torchvisions() -> None:
    source = in_memory(channels=3)
    images, _ = epoch_of(load(source).validation, 0)
    scaled = noise(7, 3, seed=1).images.float() / 255
    expected = v2.functional.normalize(scaled, list(source.mean), list(source.std))
    torch.testing.assert_close(images, expected)


@pytest.mark.parametrize("channels_last", [True, False])
def test_the_memory_format_is_the_one_asked_for(channels_last: bool) -> None:
    loaders = load(in_memory(channels=3), channels_last=channels_last)
    wanted = torch.channels_last if channels_last else torch.contiguous_format
    for batches in (loaders.train, loaders.validation):
        assert next(batches.batches(0))[0].is_contiguous(memory_format=wanted)


def test_grey_is_repeated_to_the_channels_asked_for() -> None:
    grey, _ = epoch_of(load(in_memory()).validation, 0)
    colour, _ = epoch_of(load(in_memory(), channels=3).validation, 0)
    assert torch.equal(colour, grey.repeat(1, 3, 1, 1))


def test_each_training_image_is_a_padded_crop_of_its_own_mirrored_or_not() -> None:
    images, labels = epoch_of(load(in_memory(60)).train, 0)
    original = noise(60).images.numpy()[:, 0]
    found = np.rint((images[:, 0].numpy() * 0.5 + 0.25) * 255)
    places = []
    for image, label in zip(found, labels.tolist(), strict=True):
        padded = np.pad(original[label], 2)
        matches = [
            (top, left, mirrored)
            for top in range(5)
            for left in range(5)
            for mirrored in (False, True)
            if np.array_equal(
                image, padded[top : top + 8, left : left + 8][:, :: -1 if mirrored else 1]
            )
        ]
        assert len(matches) == 1
        places += matches
    assert len(set(places[:6])) > 2, "images of one batch share a crop"
    assert {mirrored for *_, mirrored in places} == {False, True}
    assert {top for top, *_ in places} == {left for _, left, _ in places} == {0, 1, 2, 3, 4}


def test_without_augmentation_training_images_are_only_shuffled() -> None:
    plain = load(in_memory(18), augment=False)
    images, labels = epoch_of(plain.train, 0)
    expected = (noise(18).images[labels].numpy() / 255 - 0.25) / 0.5
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-5, atol=1e-6)
    bare = load(in_memory(18, padding=0, flip=False))
    assert same((images, labels), epoch_of(bare.train, 0))


def test_crops_grow_with_the_image_size() -> None:
    source = in_memory(60, padding=1, flip=False)
    white = dataclasses.replace(
        source, train=Split(torch.full((60, 1, 8, 8), 255).byte(), torch.arange(60))
    )
    images, _ = epoch_of(load(white, image_size=24).train, 0)
    black_rows = (images[:, 0] < 0).all(2).sum(1)
    assert black_rows.max() == 3


def test_resizing_is_torchvisions_antialiased_one() -> None:
    images, _ = epoch_of(load(in_memory(), image_size=5).validation, 0)
    resized = v2.functional.resize(noise(7, seed=1).images, [5, 5], antialias=True)
    expected = (resized.numpy() / 255 - 0.25) / 0.5
    np.testing.assert_allclose(images.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_set_too_large_to_resize_at_once_gives_the_same_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_once = epoch_of(load(in_memory(), image_size=16).train, 0)
    monkeypatch.setattr(tensor_batches, "RESIZE_CHUNK", 7)
    assert same(at_once, epoch_of(load(in_memory(), image_size=16).train, 0))
    monkeypatch.setattr(tensor_batches, "LARGEST_RESIZED_SET", 100)
    assert same(at_once, epoch_of(load(in_memory(), image_size=16).train, 0))


def test_train_samples_picks_the_same_images_for_every_seed() -> None:
    def picked(samples: int, seed: int) -> set[int]:
        loaders = load(in_memory(), train_samples=samples, seed=seed, batch_size=1)
        return set(epoch_of(loaders.train, 0)[1].tolist())

    assert picked(5, seed=0) == picked(5, seed=1)
    assert picked(5, seed=0) < picked(8, seed=0)
    assert picked(5, seed=0) != {0, 1, 2, 3, 4}
    assert len(picked(20, seed=0)) == 20


@pytest.mark.parametrize(
    ("samples", "picked"), [(3, [0, 2, 4]), (6, [0, 1, 2, 3, 4, 5]), (9, None)]
)
def test_validation_samples_are_taken_evenly(samples: int, picked: list[int] | None) -> None:
    every = epoch_of(load(in_memory()).validation, 0)[1].tolist()  # seven
    some = load(in_memory(), validation_samples=samples).validation
    assert epoch_of(some, 0)[1].tolist() == [every[i] for i in picked or range(7)]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_generator_is_left_alone(files: DataSource, workers: int) -> None:
    for source in (in_memory(), files):
        loaders = load(source, image_size=16, workers=workers)
        before = torch.get_rng_state()
        epoch_of(loaders.train, 0)
        epoch_of(loaders.validation, 0)
        assert torch.equal(before, torch.get_rng_state())


def test_any_number_of_workers_gives_the_same_batches(files: DataSource) -> None:
    alone = load(files, image_size=16, workers=0, batch_size=3)
    shared = load(files, image_size=16, workers=2, batch_size=3)
    for epoch in (0, 1, 0):
        assert same(epoch_of(alone.train, epoch), epoch_of(shared.train, epoch))
    assert same(epoch_of(alone.validation, 0), epoch_of(shared.validation, 0))
    next(shared.train.batches(7))
    assert same(epoch_of(alone.train, 2), epoch_of(shared.train, 2))
    del shared
    gc.collect()
    assert multiprocessing.active_children() == []


def test_workers_end_at_once_where_an_error_holds_their_stream(files: DataSource) -> None:
    """Its traceback is part of a cycle, of which the collector closes the queues first."""

    def fail() -> None:
        shared = load(files, image_size=16, workers=2, batch_size=3)
        epoch_of(shared.validation, 0)
        try:
            raise ValueError
        except ValueError as error:
            kept = error  # its frame has the error, and the error the frame
        assert kept is not None

    gc.collect()
    fail()
    begun = time.monotonic()
    gc.collect()
    assert time.monotonic() - begun < 4  # torch waits 5 s for each that does not end


def test_file_crops_change_with_epoch_seed_and_image(files: DataSource) -> None:
    first, labels = epoch_of(load(files, image_size=16, workers=0).train, 0)
    assert first.shape == (6, 3, 16, 16)
    assert first.is_contiguous(memory_format=torch.channels_last)
    for changed in ({"seed": 4}, {}):
        again, others = epoch_of(load(files, image_size=16, workers=0, **changed).train, 1)
        shared = [
            (i, others.tolist().index(x)) for i, x in enumerate(labels.tolist()) if x in others
        ]
        assert shared
        assert not any(torch.equal(first[i], again[j]) for i, j in shared)


@pytest.mark.parametrize("size", [16, 35])
def test_validation_files_are_resized_and_cut_as_torchvision_does(
    files: DataSource, size: int
) -> None:
    images, labels = epoch_of(load(files, image_size=size, workers=0).validation, 0)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert isinstance(files.validation, FileSplit)
    reference = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(round(size * 256 / 224)),
            v2.CenterCrop(size),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(files.mean), list(files.std)),
        ]
    )
    expected = torch.stack([reference(Image.open(path)) for path in files.validation.paths])
    torch.testing.assert_close(images, expected)


def test_files_without_augmentation_are_cut_like_validation_files(files: DataSource) -> None:
    train, labels = epoch_of(load(files, image_size=16, workers=0, augment=False).train, 0)
    loaders = load(dataclasses.replace(files, validation=files.train), image_size=16, workers=0)
    assert torch.equal(train, epoch_of(loaders.validation, 0)[0][labels])


@pytest.mark.parametrize("half", ["train", "validation"])
@pytest.mark.parametrize("kind", ["in memory", "files", "repeated"])
def test_an_epoch_begun_in_the_middle_gives_the_batches_that_are_left(
    half: str, kind: str, files: DataSource
) -> None:
    changes = {"repeats": 2} if kind == "repeated" else {}
    source = files if kind == "files" else in_memory(channels=3)

    def fresh() -> Batches:
        made = load(source, image_size=16, workers=0, batch_size=3, **changes)
        return made.train if half == "train" else made.validation

    whole, again = list(fresh().batches(1)), fresh()
    assert len(whole) > 1
    for start in range(len(whole) + 1):
        left = list(again.batches(1, start))
        assert len(left) == len(whole) - start
        assert all(same(a, b) for a, b in zip(left, whole[start:], strict=True))
    assert same(next(again.batches(2)), next(fresh().batches(2)))


def test_starting_another_epoch_ends_the_one_before(files: DataSource) -> None:
    train = load(files, image_size=16, workers=0, batch_size=2).train
    first = train.batches(0)
    next(first)
    next(train.batches(1))
    with pytest.raises(ValueError, match="another epoch was started"):
        next(first)


def starts_of_streams(batches: Batches, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collect the epochs at which the workers were told to start over."""
    assert isinstance(batches, FileBatches)
    starts: list[int] = []
    whole = batches._plan.__class__.__iter__

    def noted(plan: Any) -> Any:
        starts.append(plan.first_epoch)
        return whole(plan)

    monkeypatch.setattr(batches._plan.__class__, "__iter__", noted)
    return starts


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_go_on_from_one_training_epoch_to_the_next(
    files: DataSource, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = load(files, image_size=16, workers=workers, batch_size=3).train
    starts = starts_of_streams(train, monkeypatch)
    going_on = [epoch_of(train, epoch) for epoch in (2, 3, 4)]
    assert set(starts) == {2}
    for epoch, found in zip((2, 3, 4), going_on, strict=True):
        fresh = load(files, image_size=16, workers=0, batch_size=3).train
        assert same(found, epoch_of(fresh, epoch))


def test_an_epoch_left_early_or_out_of_turn_starts_over(
    files: DataSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = load(files, image_size=16, workers=0, batch_size=3).train
    first = epoch_of(train, 0)
    starts = starts_of_streams(train, monkeypatch)
    next(train.batches(1))
    assert same(first, epoch_of(train, 0))
    assert same(first, epoch_of(train, 0))
    assert starts == [0, 0]


def test_workers_are_told_of_files_batch_by_batch(files: DataSource) -> None:
    train = load(files, image_size=16, workers=0, batch_size=3).train
    assert isinstance(train, FileBatches)
    assert len(pickle.dumps(train._reader)) < 500
    epoch, images = next(iter(train._plan))
    assert isinstance(files.train, FileSplit)
    assert epoch == 0
    assert [path for _, path, _ in images] == [files.train.paths[index] for index, *_ in images]
    assert [label for *_, label in images] == [files.train.labels[index] for index, *_ in images]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_without_a_traceback(
    files: DataSource, workers: int, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    source = dataclasses.replace(files, validation=FileSplit([broken], [0]))
    with pytest.raises(DataError) as caught:
        epoch_of(load(source, image_size=16, workers=workers).validation, 0)
    assert str(caught.value).startswith(f"{broken}: cannot be read as an image")
    assert "Traceback" not in str(caught.value)


def test_more_train_samples_than_there_are_is_a_data_error() -> None:
    with pytest.raises(DataError, match="train_samples is 21, more than the 20 training images"):
        load(in_memory(20), train_samples=21)


def test_labels_outside_the_classes_are_a_data_error() -> None:
    source = dataclasses.replace(in_memory(20), classes=10)
    with pytest.raises(DataError, match=r"labels run from 0 to 19; needed are 0\.\.9"):
        load(source)


def test_colour_cannot_become_grey() -> None:
    with pytest.raises(DataError, match="has 3 channels but the model takes 1"):
        load(in_memory(channels=3), channels=1)


def test_an_empty_half_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no images"):
        load(dataclasses.replace(in_memory(), validation=noise(0)))


@pytest.mark.parametrize("name", ["batch_size", "image_size", "train_samples"])
def test_sizes_below_1_are_a_programmers_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        load(in_memory(), **{name: 0})
