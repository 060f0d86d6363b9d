"""Data drawn from formulas: their statistics, their labels, and what theory asks of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qtool.data.datasets import DATASETS
from qtool.data.loaders import make_loaders
from qtool.data.sources import DataSource, Split, Teacher, known_classes, known_image_size
from qtool.errors import DataError

NOWHERE = Path("/nowhere")
CLASSES, DIMENSION, SUBSPACE = 4, 12, 2


def halves(source: DataSource) -> tuple[Split, Split]:
    assert isinstance(source.train, Split)
    assert isinstance(source.validation, Split)
    return source.train, source.validation


def teacher_of(source: DataSource) -> Teacher:
    assert source.teacher is not None
    return source.teacher


def gaussian(seed: int = 0, kind: str = "any", samples: int = 4000, rows: int = 5) -> DataSource:
    build = DATASETS.build(
        "gaussian_teacher", rows=rows, columns=3, samples=samples, teacher=kind, seed=seed
    )
    return build(NOWHERE)


def subspaces(**params: object) -> DataSource:
    sizes = {"classes": CLASSES, "dimension": DIMENSION, "subspace_dimension": SUBSPACE}
    return DATASETS.build("linear_subspaces", **(sizes | params))(NOWHERE)


def basis_of(points: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis [d, k] of what points [N, d] span."""
    _, sizes, directions = np.linalg.svd(points, full_matrices=False)
    return directions[sizes > 1e-4 * sizes[0]].T


def test_inputs_of_the_teacher_are_independent_and_normal() -> None:
    for half in halves(gaussian()):
        assert half.images.shape == (4000, 1, 5, 3)
        assert half.images.dtype == torch.float32
        values = half.images.flatten(1).double().numpy()
        np.testing.assert_allclose(values.mean(0), 0, atol=0.07)
        np.testing.assert_allclose(np.cov(values.T), np.eye(15), atol=0.1)


def test_targets_are_what_the_teacher_says() -> None:
    source = gaussian()
    v, w = (part.numpy() for part in teacher_of(source))
    assert np.linalg.norm(w) == pytest.approx(1)
    for half in halves(source):
        z = half.images.numpy().astype(np.float64)[:, 0]
        expected = [sum(v[i] * (row[i] @ w > 0) for i in range(5)) for row in z]
        np.testing.assert_allclose(half.labels.numpy(), expected, atol=1e-5)
    assert source.classes == 1


def test_a_seed_decides_teacher_and_inputs_and_halves_differ() -> None:
    first, again, other = gaussian(1), gaussian(1), gaussian(2)
    assert torch.equal(teacher_of(first).v, teacher_of(again).v)
    assert torch.equal(teacher_of(first).w, teacher_of(again).w)
    assert torch.equal(halves(first)[0].images, halves(again)[0].images)
    assert not torch.equal(teacher_of(first).v, teacher_of(other).v)
    assert not torch.equal(*(half.images for half in halves(first)))


def test_a_teacher_with_a_spurious_minimum_has_what_it_takes() -> None:
    without = 0
    for seed in range(40):
        v = teacher_of(gaussian(seed, "with_spurious_minimum", samples=1, rows=3)).v.numpy()
        assert 0.1**2 * (v**2).sum() < v.sum() ** 2 < (3 + 1) / 2 * (v**2).sum()
        v = teacher_of(gaussian(seed, samples=1, rows=3)).v.numpy()
        without += v.sum() ** 2 >= (3 + 1) / 2 * (v**2).sum()
    assert without > 0


def test_one_row_has_no_spurious_minimum() -> None:
    with pytest.raises(DataError, match=r"set data\.rows to 2 or more"):
        gaussian(kind="with_spurious_minimum", rows=1)


@pytest.mark.parametrize("directions", ["circle", "cone"])
@pytest.mark.parametrize("kind", ["orthogonal", "independent"])
def test_each_class_lies_in_a_subspace_of_its_own(kind: str, directions: str) -> None:
    source = subspaces(subspaces=kind, directions=directions)
    train, validation = halves(source)
    assert train.labels.bincount().tolist() == [60] * CLASSES
    bases = []
    for label in range(CLASSES):
        seen, held_out = (
            half.images[half.labels == label].flatten(1).double().numpy()
            for half in (train, validation)
        )
        radii = np.linalg.norm(seen, axis=1)
        assert radii.min() >= 0.5 - 1e-6
        assert radii.max() <= 2.0 + 1e-6
        basis = basis_of(seen)
        assert basis.shape == (DIMENSION, SUBSPACE)
        np.testing.assert_allclose(held_out @ basis @ basis.T, held_out, atol=1e-5)
        bases.append(basis)
    joined = np.concatenate(bases, axis=1)
    assert np.linalg.matrix_rank(joined) == CLASSES * SUBSPACE
    products = np.abs(joined.T @ joined - np.eye(CLASSES * SUBSPACE)).max()
    assert (products < 1e-5) == (kind == "orthogonal")


def test_a_circle_goes_all_around_and_a_cone_does_not() -> None:
    for directions, surrounded in (("circle", True), ("cone", False)):
        train = halves(subspaces(directions=directions))[0]
        points = train.images[train.labels == 0].flatten(1).double().numpy()
        plane = points @ basis_of(points)
        angles = np.sort(np.arctan2(plane[:, 1], plane[:, 0]))
        gaps = np.diff([*angles, angles[0] + 2 * np.pi])
        assert (gaps.max() < np.pi) == surrounded


def test_subspaces_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"take 16 dimensions, and there are 12"):
        subspaces(subspace_dimension=4)


def test_what_is_known_of_them_without_drawing() -> None:
    assert known_classes("gaussian_teacher", rows=2, columns=3) == 1
    assert known_classes("linear_subspaces", classes=4, dimension=12) == 4
    assert known_image_size("gaussian_teacher", rows=2, columns=3) == 3
    assert known_image_size("linear_subspaces", classes=4, dimension=12) == 12


def loaders(source: DataSource, repeats: int = 1, image_size: int | None = None):
    return make_loaders(
        source,
        batch_size=16,
        image_size=image_size,
        train_samples=None,
        repeats=repeats,
        seed=0,
        device=torch.device("cpu"),
    )


def test_batches_hold_the_values_as_they_are() -> None:
    source = gaussian(samples=32)
    given = loaders(source)
    images, targets = map(torch.cat, zip(*given.validation.batches(0), strict=True))
    assert torch.equal(images, halves(source)[1].images)
    assert torch.equal(targets, halves(source)[1].labels)
    shuffled = torch.cat([x for x, _ in given.train.batches(0)])
    assert sorted(shuffled.sum((1, 2, 3)).tolist()) == sorted(
        halves(source)[0].images.sum((1, 2, 3)).tolist()
    )
    assert (given.classes, given.channels, given.image_size) == (1, 1, 3)
    assert given.teacher is source.teacher


def test_what_is_no_picture_is_not_resized() -> None:
    with pytest.raises(DataError, match=r"no pictures to resize; leave out data\.image_size"):
        loaders(subspaces(), image_size=28)


def test_repeats_pass_over_the_set_so_often_each_time_in_another_order() -> None:
    once, often = loaders(gaussian(samples=32)).train, loaders(gaussian(samples=32), 3).train
    assert len(often) == 3 * len(once) == 6
    assert often.samples == 32
    expected = [x for epoch in (3, 4, 5) for x, _ in once.batches(epoch)]
    found = [x for x, _ in often.batches(1)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.equal(found[0], found[2])
