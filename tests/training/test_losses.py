import numpy as np
import pytest
import torch

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


def test_binary_cross_entropy_meets_images_of_several_classes_and_of_none():
    targets = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    loss = LOSSES.build("binary_cross_entropy")
    found = loss(torch.tensor(LOGITS), torch.tensor(targets))

    assert float(found) == pytest.approx(binary(targets), rel=1e-12)
    assert [n for n in LOSSES.names() if LOSSES.facts(n).several] == ["binary_cross_entropy"]


def test_squared_error_meets_numbers_too():
    found = LOSSES.build("squared_error")(torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, 3.0]))

    assert float(found) == pytest.approx((0.5**2 + 1.0**2) / 2 / 2)
