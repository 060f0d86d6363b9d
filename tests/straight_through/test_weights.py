"""Alpha and M of weights in their own units, against the numbers of the paper's own quantizer."""

import pytest
import torch

from qtool.numerics.grid import quantize
from qtool.settings.tensors import WeightQuantization
from qtool.straight_through.weights import WeightMap

STEP = torch.tensor(2 / 3)  # 2 bits between -1 and 1: levels -1, -1/3, 1/3, 1


def weight_map(estimator="hyperbolic_tangent", bits=2, grid="mid_rise"):
    settings = {"bits": bits, "grid": grid, "estimator": estimator, "range": "he_uniform"}
    return WeightMap(WeightQuantization.model_validate(settings))


SHARP = {"name": "hyperbolic_tangent", "sharpness": 6.5 / 3}


@pytest.mark.parametrize(
    ("w", "mapped"),
    [
        (0.05, 0.01058122),
        (0.1, 0.02355791),
        (0.3, 0.22463667),
        (0.4, 0.51372513),
        (-0.25, -0.12669823),
    ],
)
def test_alpha_and_m_are_the_papers(w, mapped):
    own, weight = weight_map(SHARP), torch.tensor([w])
    assert own.in_steps.alpha == pytest.approx(0.454376, abs=2e-5)
    assert own.map(weight, STEP).item() == pytest.approx(mapped, abs=2e-5)
    assert own.largest_level(STEP) == pytest.approx(1.0)


@pytest.mark.parametrize("grid", ["mid_rise", "narrow", "full"])
@pytest.mark.parametrize("estimator", [SHARP, "sinusoidal", "magnitude_aware", "straight_through"])
def test_m_keeps_every_code_and_what_saturates(grid, estimator):
    own = weight_map(estimator, grid=grid)
    weight = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    mapped = own.map(weight, STEP)
    codes, after = (quantize(w, STEP, 0, own.settings.integer_grid) for w in (weight, mapped))
    assert torch.equal(codes, after)
    if estimator != "magnitude_aware":
        u = weight / STEP + own.settings.integer_grid.offset
        beyond = (u < own.settings.integer_grid.qmin) | (u > own.settings.integer_grid.qmax)
        assert torch.equal(mapped[beyond], weight[beyond])


@pytest.mark.parametrize(
    ("estimator", "sgd", "adam"),
    [
        ("hyperbolic_tangent", "", ""),
        ("straight_through", "", ""),
        ("element_wise_gradient_scaling", "depends on the sign", "depends on the sign"),
        ("reverse_exponential", "not cyclical", ""),
        (
            {
                "name": "hyperbolic_tangent",
                "sharpness": {"name": "linear", "start": 1.0, "stop": 2.0},
            },
            "its sharpness moves in training",
            "",
        ),
    ],
    ids=str,
)
def test_what_lies_outside_the_class(estimator, sgd, adam):
    for expected, adaptive in ((sgd, False), (adam, True)):
        found = weight_map(estimator).outside(adaptive=adaptive)
        assert expected in found
        assert bool(found) == bool(expected)


def test_what_passes_gradients_beyond_the_grid():
    names = ["identity", "straight_through", "hyperbolic_tangent", "magnitude_aware"]
    assert [weight_map(name).passes_beyond for name in names] == [True, False, False, True]
