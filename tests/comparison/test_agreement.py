"""The measures of likeness, on sequences short enough to count by hand."""

import numpy as np
import pytest
import torch

from qtool.comparison.equivalence import agreement
from qtool.runs.kept.changes import LayerRecord, Record


def layer(sequences, weights=None, path=(0.0, 1.0)):
    """A layer's record from each weight's [start, (step, code), (step, code), ...]."""
    found = [(k, step, code) for k, (_, *points) in enumerate(sequences) for step, code in points]
    index, step, code = (
        np.array([point[k] for point in found], dtype=kind)
        for k, kind in enumerate((np.int32, np.int32, np.int8))
    )
    ends = [points[-1][1] if points else start for start, *points in sequences]
    codes = torch.tensor([[s[0] for s in sequences], ends], dtype=torch.int8)
    weights = torch.zeros(codes.shape) if weights is None else torch.tensor(weights)
    path = torch.tensor(path, dtype=torch.float64)
    return LayerRecord(weights, codes, path, torch.tensor(1.0), index, code, step)


def record(*layers, predictions=((0,),), labels=((0,),)):
    named = {f"layer{k}": one for k, one in enumerate(layers)}
    return Record(named, list(torch.tensor(predictions)), list(torch.tensor(labels)))


A = layer(
    [
        [0],  # never changes
        [0, (3, 1), (9, 2)],
        [0, (1, 1), (2, 0), (3, 1)],  # oscillates
        [0, (5, 1)],
        [0, (5, 1)],
        [1, (5, 0), (6, 1)],
    ]
)
B = layer(
    [
        [0],
        [0, (5, 1), (8, 2)],  # the same values, 2 steps later and 1 earlier
        [0, (4, 1)],
        [0, (5, 2)],  # another value
        [1],  # another start, though the same end
        [1],  # 1, 0, 1 is no oscillation yet
    ]
)


def test_sequences_are_the_same_whenever_they_happen():
    assert agreement.same_sequences(A, B).tolist() == [True, True, False, False, False, False]
    same = agreement.same_sequences(A, B)
    expected = [True, True, True, False, False, False]
    assert agreement.same_compressed(A, B, same).tolist() == expected


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([0], [0]),
        ([0, 1, 0], [0, 1, 0]),
        ([0, 1, 0, 1], [0, 1]),
        ([0, 1, 0, 1, 0], [0, 1, 0]),
        ([0, 1, 0, 1, 0, 1, 0, 1], [0, 1]),
        ([2, 0, 1, 0, 1, 2], [2, 0, 1, 2]),
        ([0, 1, 2, 1, 2, 1, 0], [0, 1, 2, 1, 0]),
        ([0, 1, 2, 3, 2, 3, 1, 2, 3], [0, 1, 2, 3, 1, 2, 3]),
    ],
    ids=str,
)
def test_oscillations_at_the_end_are_taken_out(codes, expected):
    assert agreement.compressed(codes) == expected


def test_flips_are_compared_over_all_layers():
    found = agreement.flip_agreement(record(A, A), record(A, B))
    # of 12 weights 6 + 2 agree, with 9 + 2 flips, of which two are 2 and 1 steps off
    assert found["change_point_agreement"] == pytest.approx(8 / 12)
    assert found["change_point_agreement_compressed"] == pytest.approx(9 / 12)
    assert found["change_point_error"] == pytest.approx((2 + 1) / (9 + 2))


def test_where_nothing_flips_there_is_no_error():
    still = record(layer([[0], [1]]))
    found = agreement.flip_agreement(still, still)
    assert found["change_point_agreement"] == 1
    assert found["change_point_error"] is None


def test_alignment_is_the_distance_over_the_path_of_b():
    sequences = [[0], [0]]
    a = record(layer(sequences, [[1.0, 2.0], [1.0, 4.0]]))
    b = record(layer(sequences, [[2.0, 4.0], [2.5, 7.0]], path=(0.0, 5.0)))
    halves = {"layer0": lambda weights, scale: 2 * weights}
    found = agreement.alignment_errors(a, b, halves, {"layer0": 0.5})
    # |2 - 2.5| + |8 - 7| over 5; the level 0.5 stands above and below
    assert found == [0.0, pytest.approx(1.5 / 5)]
    unmoved = agreement.alignment_errors(a, b, {}, {"layer0": 0.5})
    assert unmoved == [None, pytest.approx((1.5 + 3) / 5)]


def test_a_layer_with_small_weights_counts_as_much():
    sequences = [[0]]
    ones = [layer(sequences, [[0.0], [k]], path=(0.0, 1.0)) for k in (0.0, 0.1)]
    a, b = record(ones[0], ones[0]), record(ones[1], ones[0])
    found = agreement.alignment_errors(a, b, {}, {"layer0": 0.1, "layer1": 10.0})
    assert found[-1] == pytest.approx((0.1 / 0.1) / (1 / 0.1 + 1 / 10))


def test_codes_agree_by_number_of_weights():
    a, b = record(A, layer([[0], [0]])), record(B, layer([[0], [1, (2, 0)]]))
    assert agreement.code_agreements(a, b) == [6 / 8, pytest.approx(7 / 8)]


def test_what_networks_say_and_where_both_are_wrong():
    a = record(A, predictions=[[0, 1, 2, 3, 4]], labels=[[0, 1, 0, 0, 0]])
    b = record(A, predictions=[[0, 2, 2, 4, 0]], labels=[[0, 1, 0, 0, 0]])
    assert agreement.inference_agreements(a, b) == [2 / 5]
    assert agreement.incorrect_agreement(a, b) == 1 / 2  # both wrong at 2 and 3, alike at 2
    assert (
        agreement.incorrect_agreement(
            a, record(A, predictions=[line.tolist() for line in a.labels])
        )
        is None
    )


@pytest.mark.parametrize(
    ("one", "two", "expected"),
    [
        ([1.0, 2.0, 3.0], [3.0, 5.0, 7.0], 1.0),
        ([1.0, 2.0, 3.0], [1.0, 0.0, -1.0], -1.0),
        ([1.0, 2.0], [4.0, 4.0], None),
        ([1.0], [1.0], None),
        ([1.0, None], [1.0, 2.0], None),
    ],
)
def test_correlation(one, two, expected):
    found = agreement.correlation(one, two)
    assert found == (expected and pytest.approx(expected))
