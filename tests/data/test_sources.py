"""Facts about data sets, exact statistics, and the fixed split."""

import inspect

import numpy as np
import pytest
import torch

from qtool.data.datasets import DATASETS
from qtool.data.sources import (
    FACTS,
    channel_statistics,
    fixed_split,
    known_channels,
    known_classes,
    known_image_size,
)


def test_every_data_set_that_reads_files_has_its_row_of_facts() -> None:
    assert sorted(FACTS) == sorted(DATASETS.names())


@pytest.mark.parametrize("name", DATASETS.names())
def test_every_data_set_takes_the_root_and_then_recipe_parameters_only(name: str) -> None:
    parameters = list(inspect.signature(DATASETS[name]).parameters.values())
    assert parameters[0].name == "root"
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[1:])


def test_what_is_known_without_data() -> None:
    assert known_classes("digits") == 10
    assert known_classes("cifar100") == 100
    assert known_classes("image_folder") is None
    assert known_classes("image_folder", labels="imagenet", folder="x") == 1000
    assert known_classes("arrays", file="x.npz") is None
    assert known_image_size("digits") == 8
    assert known_image_size("image_folder") == 224
    assert known_image_size("arrays") is None
    assert known_channels("mnist") == 1
    assert known_channels("cifar10") == 3
    assert known_channels("arrays") is None


def test_statistics_equal_those_of_the_float_images() -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (9, 3, 5, 5), np.uint8))
    mean, std = channel_statistics(images)
    scaled = images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-12)


def test_the_split_is_stratified_and_the_same_every_time() -> None:
    labels = [0] * 30 + [1] * 10
    train, held_out = fixed_split(labels, 8)
    assert sorted(train.tolist() + held_out.tolist()) == list(range(40))
    assert [labels[i] for i in held_out.tolist()].count(0) == 6
    assert torch.equal(held_out, fixed_split(labels, 8)[1])


def test_a_split_that_cannot_be_stratified_is_a_plain_one() -> None:
    train, held_out = fixed_split([0, 1, 2, 3, 4], 2)
    assert (len(train), len(held_out)) == (3, 2)
    assert not set(train.tolist()) & set(held_out.tolist())
