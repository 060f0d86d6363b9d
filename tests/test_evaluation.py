"""Two models say the same: the one rule that proofs and checks of files go by."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from qtool.evaluation import (
    accuracy_of,
    agreement,
    agreement_of_values,
    count_hits,
    evaluate,
    judge,
)


def figures(**changes):
    usual = {
        "sigma": 1.0,
        "clear_share": 0.9,
        "clear_agreement": 1.0,
        "median_abs_difference": 0.0,
    }
    return usual | changes


def test_clear_images_must_agree():
    assert judge(figures(clear_agreement=0.98), torch.zeros(1)) == ""
    assert "at least 0.98" in judge(figures(clear_agreement=0.979), torch.zeros(1))


def test_where_few_images_are_clear_the_logits_must_agree():
    bad = figures(clear_share=0.49, median_abs_difference=0.11)

    assert "median" in judge(bad, torch.zeros(1))
    assert judge(bad | {"clear_share": 0.5}, torch.zeros(1)) == ""
    assert judge(bad | {"median_abs_difference": 0.1}, torch.zeros(1)) == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_disagrees(value):
    assert "not finite" in judge(figures(), torch.tensor([0.0, value]))


def test_an_image_of_several_classes_is_right_where_each_of_them_is_told_and_no_other():
    logits = torch.tensor([[1.0, -1.0, 2.0], [1.0, 0.0, -0.1], [0.1, -3.0, -3.0], [-1.0] * 3])
    several = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0] * 3])

    assert int(count_hits(logits, several)) == 2  # the first, and the last, which has none
    assert accuracy_of(logits, several) == 0.5
    assert accuracy_of(logits, several.argmax(1)) == 0.75
    assert accuracy_of(logits[:, :1], torch.tensor([1.0, 0.5, 0.1, -1.0])) is None


def test_the_f1_of_images_of_several_classes_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 4, generator=generator)
    labels = (torch.rand(12, 4, generator=generator) < 0.3).float()
    batches = [(logits[:7], labels[:7]), (logits[7:], labels[7:])]
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    score = evaluate(lambda x: x, batches, loss)
    assert score.f1 == pytest.approx(f1_score(labels, logits > 0, average="micro"))
    assert score.accuracy == pytest.approx(accuracy_score(labels, logits > 0))
    nothing = evaluate(lambda x: x, [(-torch.ones(2, 3), torch.zeros(2, 3))], loss)
    assert (nothing.f1, nothing.accuracy) == (1, 1)


def test_the_five_largest_logits_are_counted_by_hand():
    logits = torch.tensor([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]])
    for labels, share in (([4, 0], 0.5), ([5, 0], 0.0), ([0, 1], 1.0)):
        batches = [(logits, torch.tensor(labels))]
        score = evaluate(lambda x: x, batches, torch.nn.functional.cross_entropy, top5=True)
        assert score.top5 == share
    assert evaluate(lambda x: x, batches, torch.nn.functional.cross_entropy).top5 is None


def test_agreement_counts_images_by_hand():
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.49], [2.0, 0.0]])
    given = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.49, 0.5], [0.0, 1.0]])
    found = agreement(expected, given)

    assert found["top1_agreement"] == 0.5
    assert found["clear_share"] == 0.75
    assert found["clear_agreement"] == pytest.approx(2 / 3)
    assert found["max_abs_difference"] == 2.0


def test_an_image_is_clear_from_a_tenth_of_the_standard_deviation_on():
    logits = np.array([[8.0, 8.0], [-4.0, -4.0], [5.0, 5.0], [-9.0, -9.0]])
    tenth = 0.1 * np.std(logits, ddof=1)
    logits[:, 1] -= tenth * np.array([0.95, 1.05, 1.95, 0.0])
    expected = torch.from_numpy(logits)
    flipped = expected.clone()
    flipped[[0, 3]] = expected.flip(1)[[0, 3]]  # the two that are not clear

    found = agreement(expected, flipped)
    assert found["clear_share"] == 0.5
    assert found["clear_agreement"] == 1.0
    assert agreement(expected, expected.flip(1))["clear_agreement"] == 0.0


def test_logits_that_are_all_one_value_agree_only_where_they_are_equal():
    constant = torch.full((8, 3), 0.25)
    found = agreement(constant, constant)
    assert found["sigma"] == 0.0
    assert found["clear_share"] == 0.0
    assert judge(found, constant) == ""

    moved = constant + torch.tensor([0.0, 0.0, 1e-4])
    assert "one constant" in judge(agreement(constant, moved), moved)
    assert judge(agreement(constant, moved), moved, room=1.1e-4) == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_on_both_sides_does_not_agree(value):
    logits = torch.tensor([[0.0, 1.0], [2.0, value]])

    assert "not finite" in judge(agreement(logits, logits), logits)
    expected = torch.zeros_like(logits)
    assert "not finite" in judge(agreement(logits, expected), expected)


def test_values_that_are_no_logits_agree_by_the_median_of_the_rows():
    expected = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    sigma = float(np.std(expected.double().numpy(), ddof=1))
    given = expected.clone()
    given[:3, 0, 0] += 5.0  # three of seven rows on the other side of a threshold
    found = agreement_of_values([(expected[:4], given[:4]), (expected[4:], given[4:])])
    assert found["images"] == 7
    assert found["sigma"] == pytest.approx(sigma, rel=1e-12)
    assert found["max_abs_difference"] == pytest.approx(5.0, rel=1e-6)
    assert found["median_abs_difference"] == 0.0
    assert judge(found, given) == ""

    given[3, 1, 1] += 0.11 * sigma
    assert "outputs differ" in judge(agreement_of_values([(expected, given)]), given)


def test_values_of_any_type_and_of_no_dimension_are_compared():
    classes = torch.tensor([1, 2, 3, 4])
    assert judge(agreement_of_values([(classes, classes)]), classes) == ""
    assert judge(agreement_of_values([(classes, classes.flip(0))]), classes)
    loss = torch.tensor(3.0)
    assert judge(agreement_of_values([(loss, loss)]), loss) == ""
