"""Data drawn from a formula, of which theory knows what a network should learn."""

from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from qtool.data.batches import seeded_generator
from qtool.data.root import DataRoot
from qtool.data.sources import DataSource, Split, Teacher, make_source
from qtool.errors import DataError
from qtool.numerics.coarse_gradient import spurious_minimum

Whole = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
RADII = (0.5, 2.0)  # distances of points from the origin
NEARLY_ZERO = 0.1  # a sum below this share of v*'s norm: the identity would leave, but very slowly
HIDDEN, *HALVES = range(3)  # what is drawn, each by itself: teacher or subspaces, and two halves


def gaussian_teacher(
    root: Path | DataRoot,
    *,
    rows: Whole,
    columns: Whole,
    samples: Whole = 10_000,
    teacher: Literal["any", "with_spurious_minimum"] = "any",
    seed: Seed = 0,
) -> DataSource:
    """Draw matrices of independent N(0, 1) and what a teacher network says of them.

        y* = sum_i v*_i [z_i . w* > 0],  |w*| = 1

    Args:
        root: Folder of data sets, which is not used.
        rows: m, the length of v*.
        columns: n, the length of w*.
        samples: Matrices to train on, and as many to judge by.
        teacher: any: v* is N(0, 1). with_spurious_minimum: drawn again until a local minimum is
            there that is not global: (1.v*)^2 < (m + 1) / 2 |v*|^2, and |1.v*| > 0.1 |v*|.
        seed: Decides the teacher and the matrices.

    Reference: Yin et al., 2019, arXiv:1903.05662.
    """
    del root
    if teacher == "with_spurious_minimum" and rows == 1:
        raise DataError(
            "gaussian_teacher: with one row, v* is one number, and no minimum but the teacher is "
            "there; set data.rows to 2 or more"
        )
    drawn = _draw_teacher(rows, columns, seed, with_spurious=teacher == "with_spurious_minimum")
    halves = [_matrices(drawn, samples, seeded_generator(seed, half)) for half in HALVES]
    return make_source("gaussian_teacher", *halves, image_size=columns, teacher=drawn)


def _draw_teacher(rows: int, columns: int, seed: int, *, with_spurious: bool) -> Teacher:
    generator = seeded_generator(seed, HIDDEN)
    w = torch.randn(columns, generator=generator, dtype=torch.float64)
    w /= w.norm()
    while True:
        v = torch.randn(rows, generator=generator, dtype=torch.float64)
        is_there = spurious_minimum(v, w) is not None and v.sum().abs() > NEARLY_ZERO * v.norm()
        if is_there or not with_spurious:
            return Teacher(v, w)


def _matrices(teacher: Teacher, samples: int, generator: torch.Generator) -> Split:
    """Return float32 images [N, 1, m, n] and targets [N]."""
    z = torch.randn(samples, 1, len(teacher.v), len(teacher.w), generator=generator)
    active = z.double() @ teacher.w > 0  # [N, 1, m]
    return Split(z, (active.squeeze(1).double() @ teacher.v).float())


def linear_subspaces(
    root: Path | DataRoot,
    *,
    classes: Annotated[int, Field(ge=2)],
    dimension: Whole,
    subspace_dimension: Whole,
    subspaces: Literal["orthogonal", "independent"] = "orthogonal",
    directions: Literal["circle", "cone"] = "circle",
    samples_per_class: Whole = 60,
    seed: Seed = 0,
) -> DataSource:
    """Draw points of classes that lie in subspaces of their own.

        x = r B_k c,  r ~ U[0.5, 2],  |c| = 1,  B_k a basis of the subspace of class k

    Args:
        root: Folder of data sets, which is not used.
        classes: How many, each with a subspace.
        dimension: Of the whole space.
        subspace_dimension: Of each subspace.
        subspaces: orthogonal to each other, or only linearly independent.
        directions: circle: c is uniform in all directions, so that no class lies on one side of
            the origin. cone: the entries of c are positive.
        samples_per_class: Points of each class to train on, and as many to judge by.
        seed: Decides subspaces and points.

    Raises:
        DataError: If the subspaces do not fit into the space.

    Reference: the setting of Long et al., 2020, arXiv:2011.11256.
    """
    del root
    if (needed := classes * subspace_dimension) > dimension:
        raise DataError(
            f"linear_subspaces: {classes} independent subspaces of dimension {subspace_dimension} "
            f"take {needed} dimensions, and there are {dimension}; set data.dimension"
        )
    generator = seeded_generator(seed, HIDDEN)
    drawn = torch.randn(dimension, needed, generator=generator, dtype=torch.float64)
    each = [drawn] if subspaces == "orthogonal" else drawn.split(subspace_dimension, dim=1)
    bases = torch.cat([torch.linalg.qr(part).Q for part in each], dim=1)
    halves = [
        _points(
            bases.split(subspace_dimension, dim=1),
            samples_per_class,
            seeded_generator(seed, half),
            positive=directions == "cone",
        )
        for half in HALVES
    ]
    return make_source("linear_subspaces", *halves, classes=classes, image_size=dimension)


def _points(
    bases: tuple[Tensor, ...], samples: int, generator: torch.Generator, *, positive: bool
) -> Split:
    """Return float32 images [N, 1, 1, d], class by class, and their classes [N]."""
    points = []
    for basis in bases:
        c = torch.randn(samples, basis.shape[1], generator=generator, dtype=torch.float64)
        c = c.abs() if positive else c
        share = torch.rand(samples, 1, generator=generator, dtype=torch.float64)
        radius = RADII[0] + (RADII[1] - RADII[0]) * share
        points.append(radius * c / c.norm(dim=1, keepdim=True) @ basis.T)
    images = torch.cat(points).float().reshape(len(bases) * samples, 1, 1, -1)
    return Split(images, torch.arange(len(bases)).repeat_interleave(samples))
