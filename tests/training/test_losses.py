import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from qtool.errors import DataError
from qtool.training.class_weights import class_weights
from qtool.training.losses import LOSSES

LOGITS = np.array([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3]])
LABELS = np.array([0, 1])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def hinge(margin):
    rows = zip(LOGITS, LABELS, strict=True)
    gaps = [margin - row[k] + max(np.delete(row, k)) for row, k in rows]
    return np.mean([max(0.0, gap) for gap in gaps])


def binary(targets):
    p = 1 / (1 + np.exp(-LOGITS))
    return -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).mean()


EXPECTED = {
    "cross_entropy": [
        ({}, -log_softmax(LOGITS)[[0, 1], LABELS].mean()),
        (
            {"label_smoothing": 0.3},
            -(0.7 * log_softmax(LOGITS)[[0, 1], LABELS] + 0.3 * log_softmax(LOGITS).mean(1)).mean(),
        ),
    ],
    "binary_cross_entropy": [({}, binary(np.eye(3)[LABELS]))],
    "multiclass_hinge": [({}, hinge(1.0)), ({"margin": 4.0}, hinge(4.0))],
    "squared_error": [({}, 0.5 * ((LOGITS - np.eye(3)[LABELS]) ** 2).sum(1).mean())],
}


@pytest.mark.parametrize("name", LOSSES.names())
def test_a_loss_matches_its_formula(name):
    for params, expected in EXPECTED[name]:
        found = LOSSES.build(name, **params)(torch.tensor(LOGITS), torch.tensor(LABELS))

        assert float(found) == pytest.approx(expected, rel=1e-12)


SHARES = np.array([[0.3, 0.7, 0.0], [0.0, 1.0, 0.0]])
OF_SHARES = {
    "cross_entropy": [
        ({}, -(SHARES * log_softmax(LOGITS)).sum(1).mean()),
        (
            {"label_smoothing": 0.3},
            -((0.7 * SHARES + 0.1) * log_softmax(LOGITS)).sum(1).mean(),
        ),
    ],
    "squared_error": [({}, 0.5 * ((LOGITS - SHARES) ** 2).sum(1).mean())],
}


@pytest.mark.parametrize("name", [n for n in LOSSES.names() if LOSSES.facts(n).takes_shares])
def test_a_loss_meets_shares_of_classes_as_mixup_makes_them(name):
    for params, expected in OF_SHARES[name]:
        found = LOSSES.build(name, **params)(torch.tensor(LOGITS), torch.tensor(SHARES))

        assert float(found) == pytest.approx(expected, rel=1e-12)


WEIGHTS = np.array([2.0, 0.5, 0.0])
WEIGHED = {
    "cross_entropy": [
        ({}, -(WEIGHTS[LABELS] * log_softmax(LOGITS)[[0, 1], LABELS]).mean(), LABELS),
        ({}, -((SHARES @ WEIGHTS) * (SHARES * log_softmax(LOGITS)).sum(1)).mean(), SHARES),
        (
            {"label_smoothing": 0.3},
            -(
                WEIGHTS[LABELS]
                * (0.7 * log_softmax(LOGITS)[[0, 1], LABELS] + 0.1 * log_softmax(LOGITS).sum(1))
            ).mean(),
            LABELS,
        ),
    ],
    "multiclass_hinge": [({}, (2.0 * 0.0 + 0.5 * (1 - 0.2 + 0.3)) / 2, LABELS)],
}


@pytest.mark.parametrize("name", [n for n in LOSSES.names() if LOSSES.facts(n).weighs])
def test_an_image_counts_by_the_weight_of_its_class(name):
    for params, expected, labels in WEIGHED[name]:
        loss = LOSSES.build(name, **params)
        found = loss(torch.tensor(LOGITS), torch.tensor(labels), torch.tensor(WEIGHTS))

        assert float(found) == pytest.approx(expected, rel=1e-12)


def test_balanced_weights_are_those_of_scikit_learn_and_classes_count_alike():
    labels = np.repeat([0, 1, 3], [6, 3, 1])
    found = class_weights("balanced", torch.tensor(labels), 5)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)

    assert found[[0, 1, 3]].tolist() == pytest.approx(expected)
    assert found[[2, 4]].tolist() == [1, 1]
    assert float(found[labels].mean()) == pytest.approx(1)
    assert class_weights([1.0, 2.0], torch.tensor(labels), 2).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("given", "labels", "told"),
    [
        ([1.0, 2.0], [0, 1, 2], "2 numbers, and the data have 3 classes"),
        ("balanced", [0.5, 1.5], "counts images of classes"),
        ("balanced", [[0.0, 1.0, 1.0]], "counts images of classes"),
    ],
)
def test_weights_that_fit_no_classes_are_refused(given, labels, told):
    with pytest.raises(DataError, match=told):
        class_weights(given, torch.tensor(labels), 3)


def test_binary_cross_entropy_meets_images_of_several_classes_and_of_none():
    targets = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    loss = LOSSES.build("binary_cross_entropy")
    found = loss(torch.tensor(LOGITS), torch.tensor(targets))

    assert float(found) == pytest.approx(binary(targets), rel=1e-12)
    assert [n for n in LOSSES.names() if LOSSES.facts(n).several] == ["binary_cross_entropy"]


def test_squared_error_meets_numbers_too():
    found = LOSSES.build("squared_error")(torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 3.0]))

    assert float(found) == pytest.approx((0.5**2 + 1.0**2) / 2 / 2)
