"""mixup and cutmix: each against its formula, and that only seed, epoch and batch count."""

from typing import Any

import numpy as np
import pytest
import torch

from qtool.data.loaders import Loaders, make_loaders
from qtool.data.mixing import MIXES, cutmix, mixup
from qtool.data.sources import DataSource, Split
from qtool.settings.section import Choice

IMAGES = torch.rand(6, 3, 20, 30)


def test_mixup_adds_up_each_image_and_the_one_before_it() -> None:
    mixed, share = mixup(IMAGES, np.random.default_rng(1), alpha=0.7)
    assert share == np.random.default_rng(1).beta(0.7, 0.7)
    for place in range(6):
        expected = share * IMAGES[place] + (1 - share) * IMAGES[place - 1]
        torch.testing.assert_close(mixed[place], expected)


def test_cutmix_pastes_a_box_whose_area_the_labels_say() -> None:
    sizes = set()
    for seed in range(30):
        mixed, share = cutmix(IMAGES, np.random.default_rng(seed))
        own = (mixed == IMAGES).all(1)
        pasted = (mixed == IMAGES.roll(1, 0)).all(1)
        assert torch.equal(own, ~pasted)
        assert own.float().mean((1, 2)).tolist() == pytest.approx([share] * 6)
        rows, columns = pasted[0].any(1), pasted[0].any(0)
        assert int(pasted[0].sum()) == int(rows.sum() * columns.sum())
        wanted = np.random.default_rng(seed).beta(1.0, 1.0)
        assert share >= wanted - 1e-9  # a box that leaves the image is smaller
        if rows.any() and not (rows[0] or rows[-1] or columns[0] or columns[-1]):
            side = 0.5 * (1 - wanted) ** 0.5
            assert int(rows.sum()) == 2 * int(side * 20)
            assert int(columns.sum()) == 2 * int(side * 30)
        sizes.add(round(share, 3))
    assert len(sizes) > 20


def load(*names: str, several: bool = False, **more: Any) -> Loaders:
    images = torch.randint(256, (10, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(10) % 4
    targets = (torch.rand(10, 4) < 0.4).float() if several else labels
    half = Split(images, targets)
    source = DataSource("noise", half, half, 4, (0.5,) * 3, (0.25,) * 3, 8, 1, flip=True)
    chosen = [Choice(name=name) for name in names]
    given = {"image_size": 8, "train_samples": None, "seed": 3, "batch_size": 4}
    return make_loaders(source, device=torch.device("cpu"), augment=chosen, **given | more)


@pytest.mark.parametrize("several", [False, True])
def test_batches_have_shares_of_classes(several: bool) -> None:
    torch.manual_seed(0)
    mixed = load("default", "mixup", several=several)
    plain = mixed.unmixed
    assert plain is not None
    pairs = zip(mixed.train.batches(5), list(plain.batches(5)), strict=True)
    for place, ((images, shares), (before, labels)) in enumerate(pairs):
        draw = np.random.default_rng([3, 5, place, 2])
        assert draw.integers(1) == 0
        share = draw.beta(0.2, 0.2)
        torch.testing.assert_close(images, share * before + (1 - share) * before.roll(1, 0))
        rows = labels if several else torch.eye(4)[labels]
        torch.testing.assert_close(shares, share * rows + (1 - share) * rows.roll(1, 0))
        assert shares.dtype == torch.float32
    assert torch.equal(mixed.first_images, next(plain.batches(0))[0])


def test_a_batch_depends_on_its_place_alone() -> None:
    torch.manual_seed(0)
    loaders = load("default", "mixup", "cutmix", repeats=2)
    whole = list(loaders.train.batches(2))
    assert len(whole) == len(loaders.train) == 4
    for start in range(4):
        images, shares = next(loaders.train.batches(2, start))
        assert torch.equal(images, whole[start][0])
        assert torch.equal(shares, whole[start][1])
    state = torch.get_rng_state()
    list(loaders.train.batches(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_both_ways_of_mixing_are_drawn_by_the_batch() -> None:
    mixed = load("mixup", "cutmix", batch_size=5)
    kinds = set()
    for epoch in range(6):
        plain = list((mixed.unmixed or mixed.train).batches(epoch))
        for (images, _), (before, _) in zip(mixed.train.batches(epoch), plain, strict=True):
            kinds.add(bool(((images == before) | (images == before.roll(1, 0))).all()))
    assert kinds == {True, False}


def test_parts_of_a_batch_mix_their_own_rows() -> None:
    torch.manual_seed(0)
    loaders = load("mixup")
    images, shares = next(loaders.train.part(1, 2).batches(0))
    before, labels = next((loaders.unmixed or loaders.train).batches(0))
    draw = np.random.default_rng([3, 0, 0, 2])
    draw.integers(1)
    share = draw.beta(0.2, 0.2)
    rows = before[1::2]
    torch.testing.assert_close(images, share * rows + (1 - share) * rows.roll(1, 0))
    assert shares.shape == (2, 4)
    assert MIXES.names() == ["mixup", "cutmix"]
    assert len(labels) == 4
