"""What may be chosen for a tensor: every rule by its message, and estimators that move."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.errors import RecipeError
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.relu_family import RELU_FAMILY
from qtool.numerics.sign_family import SIGN_FAMILY
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.control import set_progress
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import QuantLinear
from qtool.settings.choices import schedule_problems
from qtool.settings.quantization import Quantization
from qtool.settings.section import check
from qtool.settings.tensors import ActivationQuantization, WeightQuantization

BLEND = {"blend": "cubic", "range": "absmax"}
SHARPENS = {"name": "linear", "start": 1.0, "stop": 2.1667}


def problems(side: str, keys: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        check(Quantization, {side: {"bits": 4} | keys}, "q")
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


W, A = "weights", "activations"
CEIL_TAKES = "identity, straight_through, relu, clipped_relu, reverse_exponential, log_tailed_relu"
NOISE_ALONE = "estimator: additive_noise has an exact gradient: only straight_through goes with it"
# side, settings -> all that is said of them
REFUSED: list[tuple[str, dict[str, Any], list[str]]] = [
    (
        W,
        {"estimator": "approx_sign"},
        ["estimator: approx_sign is for grids of two levels; set bits: 1"],
    ),
    (A, {"estimator": "tanh"}, ["estimator: tanh is for grids of two levels; set bits: 1"]),
    (
        A,
        {"rounding": "ceil", "estimator": "hyperbolic_tangent"},
        [
            "estimator: hyperbolic_tangent has its thresholds at half-integers, ceil at integers; "
            f"choose one of: {CEIL_TAKES}"
        ],
    ),
    (
        A,
        {"rounding": "ceil", "bits": 1},
        ["rounding: ceil with 1 bit needs grid: unsigned, {0, 1}"],
    ),
    (W, {"rounding": "additive_noise", "estimator": "identity"}, [NOISE_ALONE]),
    (
        A,
        {"range": "pact", "scale_gradient": "chain_rule"},
        ["scale_gradient: pact has a gradient of its own; leave this out"],
    ),
    (A, {"rounding": "additive_noise", "estimator": "relu"}, [NOISE_ALONE]),
    (
        A,
        {"rounding": "additive_noise", "range": "pact"},
        ["range: pact excludes additive_noise; choose learned"],
    ),
    (
        A,
        {"rounding": "additive_noise", "grid": "asymmetric"},
        ["rounding: additive_noise excludes grid: asymmetric; choose unsigned or full"],
    ),
    (
        W,
        {"rounding": "stochastic_rounding"} | BLEND,
        ["rounding: stochastic_rounding excludes a blend; remove one of the two"],
    ),
    (
        A,
        {"rounding": "additive_noise"} | BLEND,
        ["rounding: additive_noise excludes a blend; remove one of the two"],
    ),
    (
        W,
        {"blend": "cubic"},
        ["blend: excludes range: learned; choose absmax or mse"],
    ),
    (
        A,
        {"blend": "cubic", "range": "pact"},
        ["blend: excludes range: pact; choose absmax or mse"],
    ),
    (
        W,
        {"grid": "ternary"},
        ["grid: ternary takes bits: 2, for its three levels -1, 0 and 1"],
    ),
    (W, {"grid": "mid_rise", "bits": 8}, ["grid: mid_rise takes 1 to 7 bits; use narrow for 8"]),
    *[
        (
            W,
            {"range": name},
            [f"range: {name} is for activations; use absmax or learned for weights"],
        )
        for name in ("ema_min_max", "half_normal", "pact")
    ],
    (
        W,
        {"freezing": {"threshold": 0.1}} | BLEND,
        ["freezing: excludes a blend; remove one of the two"],
    ),
    (W, {"freezing": {}}, ["freezing.threshold: missing"]),
    (
        W,
        {"freezing": {"threshold": -0.1}},
        ["freezing.threshold: becomes -0.1; it must not be negative"],
    ),
    (
        W,
        {"freezing": {"threshold": 0.1, "momentum": 0.0}},
        ["freezing.momentum: 0.0 is not more than 0.0"],
    ),
    (
        W,
        {"saturation": "never"},
        ["saturation: unknown choice 'never'; choose one of: allow, avoid"],
    ),
    (W, {"dampening": -1}, ["dampening: becomes -1; it must not be negative"]),
    (
        W,
        {"dampening": {"name": "linear", "start": 1.0, "stop": -1.0}},
        ["dampening: becomes -0.02; it must not be negative"],
    ),
    (
        W,
        {"dampening": "linear"},
        ["dampening.start: missing; linear needs it", "dampening.stop: missing; linear needs it"],
    ),
    (A, {"grid": "mid_rise"}, ["grid: mid_rise inputs have 1 bit; use full for more"]),
    *[
        (A, {"range": "half_normal", "grid": grid}, ["range: half_normal is for grid: unsigned"])
        for grid in ("full", "narrow")
    ],
    (A, {"range": "he_uniform"}, ["range: he_uniform is for weights; use learned or ema_min_max"]),
    (
        A,
        {"grid": "asymmetric", "range": "absmax"},
        [
            "grid: asymmetric needs range: ema_min_max, min_max, calibrated or learned, which find "
            "a zero point"
        ],
    ),
    (
        A,
        {"grid": "asymmetric", "bits": 1},
        ["grid: asymmetric takes 2 bits or more; use unsigned for {0, 1}"],
    ),
]


@pytest.mark.parametrize(("side", "keys", "lines"), REFUSED, ids=str)
def test_what_does_not_go_together_is_named_with_what_would(
    side: str, keys: dict[str, Any], lines: list[str]
) -> None:
    assert problems(side, keys) == [f"{side}.{line}" for line in lines]


@pytest.mark.parametrize(("side", "keys", "lines"), REFUSED, ids=str)
def test_it_is_refused_in_an_override_too(
    side: str, keys: dict[str, Any], lines: list[str]
) -> None:
    data = {side: {"bits": 4}, "overrides": [{"match": "a", side: keys}]}
    with pytest.raises(RecipeError) as caught:
        check(Quantization, data, "q")
    found = [line.strip() for line in str(caught.value).splitlines()[1:]]
    assert found == [f"overrides.0.{side}.{line}" for line in lines]


@pytest.mark.parametrize(
    ("side", "keys"),
    [
        *[
            (side, {"bits": 1, "estimator": name})
            for side in (W, A)
            for name in SIGN_FAMILY.names()
        ],
        *[
            (A, {"rounding": "ceil", "estimator": name})
            for name in ("identity", "straight_through", *RELU_FAMILY.names())
        ],
        (A, {"rounding": "ceil", "bits": 1, "grid": "unsigned"}),
        (A, {"rounding": "ceil"} | BLEND),
        (W, {"rounding": "stochastic_rounding", "estimator": "hyperbolic_tangent"}),
        (W, {"grid": "ternary", "bits": 2}),
        (W, {"freezing": {"threshold": {"name": "cosine", "start": 0.04, "stop": 0.01}}}),
        (W, {"dampening": {"name": "linear", "start": 0.0, "stop": 0.1}}),
        (W, {"dampening": 0}),
        (A, {"range": "half_normal"}),
        (A, {"grid": "asymmetric", "range": "learned"}),
        (A, {"grid": "mid_rise", "bits": 1}),
    ],
    ids=str,
)
def test_what_goes_together_is_accepted(side: str, keys: dict[str, Any]) -> None:
    made = check(Quantization, {side: {"bits": 4} | keys}, "q")
    assert check(Quantization, made.model_dump(), "again") == made


# settings of an estimator -> all that is said of them
WRONG_SCHEDULES: list[tuple[dict[str, Any], list[str]]] = [
    (
        {"name": "sinusoidal", "amplitude": {"name": "linear", "start": 0.5, "stop": 1.5}},
        ["amplitude: its value becomes wrong: 1.0 is not less than 1.0"],
    ),
    (
        {"name": "hyperbolic_tangent", "sharpness": {"name": "linear", "start": 1.0, "stop": 0.0}},
        ["sharpness: its value becomes wrong: 0.0 is not more than 0.0"],
    ),
    (
        {"name": "triangular", "height": {"name": "linear", "start": 0.1, "stop": 0.9}},
        [
            "height: {'name': 'linear', 'start': 0.1, 'stop': 0.9} is not a number; "
            "it stays as it is in training"
        ],
    ),
    (
        {"name": "hyperbolic_tangent", "sharpness": SHARPENS | {"name": "liner"}},
        ["sharpness: unknown schedule 'liner'; did you mean linear?"],
    ),
    (
        {"name": "hyperbolic_tangent", "sharpness": SHARPENS | {"stp": 1.0}},
        ["sharpness.stp: linear has no parameter stp; did you mean stop?"],
    ),
    (
        {"name": "hyperbolic_tangent", "sharpness": {"name": "linear", "start": 1.0}},
        ["sharpness.stop: missing; linear needs it"],
    ),
    (
        {"name": "hyperbolic_tangent", "sharpness": {"start": 1.0, "stop": 2.0}},
        ["sharpness: a schedule has a name, such as linear"],
    ),
    (
        {"name": "hyperbolic_tangent", "sharpness": SHARPENS | {"window": [0.5]}},
        ["sharpness.window: [0.5] is not a window [a, b] with 0 <= a <= b <= 1"],
    ),
    (
        {
            "name": "hyperbolic_tangent",
            "sharpness": {"name": "piecewise", "values": [1.0], "at": [0.5]},
        },
        [
            "sharpness: piecewise with 1 shares in `at` needs 2 values, got 1: one before the "
            "first share and one from each share on"
        ],
    ),
    (
        {"name": "hyperbolic_tangent", "sharpnes": SHARPENS},
        ["sharpnes: hyperbolic_tangent has no parameter sharpnes; did you mean sharpness?"],
    ),
]


@pytest.mark.parametrize("side", [W, A])
@pytest.mark.parametrize(("estimator", "lines"), WRONG_SCHEDULES, ids=str)
def test_a_wrong_schedule_of_a_parameter_is_named_with_its_place(
    side: str, estimator: dict[str, Any], lines: list[str]
) -> None:
    expected = [f"{side}.estimator.{line}" for line in lines]
    assert problems(side, {"estimator": estimator}) == expected


def slopes(made: FakeQuantize, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    made.round_to_grid(x).sum().backward()
    assert x.grad is not None
    return x.grad


def tanh_slope(u: Tensor, sharpness: float) -> np.ndarray[Any, Any]:
    t = u.double().numpy() - np.floor(u.double().numpy()) - 0.5
    return sharpness / np.tanh(sharpness) / np.cosh(2 * sharpness * t) ** 2


def test_a_scheduled_parameter_moves_the_backward_and_nothing_else() -> None:
    settings = WeightQuantization.model_validate(
        {"bits": 4, "estimator": {"name": "hyperbolic_tangent", "sharpness": SHARPENS}}
    )
    made = FakeQuantize(settings, IntegerGrid(4, "narrow"))
    u = torch.linspace(-6.9, 6.9, 301)
    forward = made.round_to_grid(u).detach()
    np.testing.assert_allclose(slopes(made, u), tanh_slope(u, 1.0), rtol=1e-5, atol=1e-6)
    for progress in (0.25, 1.0, 0.5):
        made.set_progress(progress)
        sharpness = 1.0 + progress * (2.1667 - 1.0)
        np.testing.assert_allclose(slopes(made, u), tanh_slope(u, sharpness), rtol=1e-5, atol=1e-6)
        assert torch.equal(made.round_to_grid(u).detach(), forward)


def test_a_parameter_beside_a_scheduled_one_stays() -> None:
    estimator = {"name": "element_wise_gradient_scaling", "delta": SHARPENS}
    settings = WeightQuantization.model_validate({"bits": 4, "estimator": estimator})
    made = FakeQuantize(settings, IntegerGrid(4, "narrow"))
    made.set_progress(1.0)
    u = torch.tensor([0.2, -1.4])
    np.testing.assert_allclose(slopes(made, u), [1 + 2.1667 * 0.2, 1 - 2.1667 * 0.4], rtol=1e-5)


def test_progress_reaches_the_estimators_of_a_prepared_model() -> None:
    section = {
        side: {"bits": 4, "estimator": {"name": "hyperbolic_tangent", "sharpness": SHARPENS}}
        for side in (W, A)
    }
    section[A]["place"] = "layer_inputs"
    torch.manual_seed(0)
    model = qtool.prepare(nn.Sequential(nn.Linear(6, 5, bias=False)), section, torch.randn(4, 6))
    layer = model[0]
    assert isinstance(layer, QuantLinear)
    found = []
    for progress in (0.0, 1.0):
        set_progress(model, progress)
        layer.weight.grad = None
        layer(torch.ones(1, 6)).sum().backward()
        assert layer.weight.grad is not None
        assert layer.weight_quantizer is not None
        assert layer.input_quantizer is not None
        x_hat = layer.input_quantizer(torch.ones(1, 6)).detach()
        u = (layer.weight / layer.weight_quantizer.scale).detach()
        inside = (u.abs() <= 7).double().numpy()
        expected = tanh_slope(u, 1.0 + progress * 1.1667) * inside * x_hat.double().numpy()
        np.testing.assert_allclose(layer.weight.grad, expected, rtol=1e-4, atol=1e-6)
        found.append(layer.weight.grad.clone())
    assert not torch.allclose(*found)


def inputs(**keys: Any) -> ActivationQuantizer:
    return ActivationQuantizer(ActivationQuantization.model_validate(keys))


def given(made: ActivationQuantizer, scale: float, x: Tensor) -> Tensor:
    """Return the rounded x once the scale is `scale`."""
    made(x)
    made.scale.data = torch.tensor(scale)
    return made(x).detach()


@pytest.mark.parametrize("grid", ["unsigned", "full", "narrow"])
def test_ceil_takes_the_next_level_above(grid: str) -> None:
    x = torch.cat([torch.linspace(-9, 9, 2_001), torch.arange(-8.0, 9.0) * 0.37])
    made = inputs(bits=4, grid=grid, rounding="ceil")
    found = given(made, 0.37, x)
    low, high = made.known_grid.qmin, made.known_grid.qmax
    u = x.numpy() / np.float32(0.37)
    expected = np.clip(np.ceil(u), low, high) * np.float32(0.37)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert torch.equal(made.eval()(x), found)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("a", [0.5, 1.2221, 0.1946])
def test_ceil_is_the_papers_quantized_relu(bits: int, a: float) -> None:
    made = inputs(bits=bits, grid="unsigned", rounding="ceil")
    a = float(np.float32(a))
    levels = 2**bits - 1
    random = np.random.default_rng(0).uniform(-2 * a, (levels + 2) * a, 5_000).astype(np.float32)
    found = given(made, a, torch.from_numpy(random)).numpy()
    expected = np.zeros(len(random), dtype=np.float32)
    for k in range(1, levels + 1):
        expected[random > np.float32((k - 1) * a)] = np.float32(k) * np.float32(a)
    sure = np.abs(random / a - np.rint(random / a)) > 1e-5
    np.testing.assert_array_equal(found[sure], expected[sure])


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_value_on_a_level_stays_there_under_ceil(bits: int) -> None:
    made = inputs(bits=bits, grid="unsigned", rounding="ceil")
    whole = torch.arange(0.0, 2**bits) * 0.25
    above = torch.nextafter(whole, torch.tensor(9.0))
    found = given(made, 0.25, torch.cat([whole, above]))
    high = (2**bits - 1) * 0.25
    assert torch.equal(found, torch.cat([whole, (whole + 0.25).clamp(max=high)]))


@pytest.mark.parametrize("grid", ["full", "narrow", "mid_rise"])
def test_one_bit_inputs_are_plus_and_minus_one_times_half_the_scale(grid: str) -> None:
    x = torch.tensor([-3.0, -1e-3, 0.0, 1e-3, 0.2, 5.0])
    made = inputs(bits=1, grid=grid)
    found = given(made, 0.8, x)
    assert made.known_grid == IntegerGrid(1, "mid_rise")
    assert torch.equal(found, 0.4 * torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]))


def test_one_bit_inputs_are_zero_and_one_where_the_grid_is_unsigned() -> None:
    x = torch.tensor([-3.0, 0.0, 0.39, 0.4, 0.41, 5.0])
    found = given(inputs(bits=1, grid="unsigned"), 0.8, x)
    assert torch.equal(found, 0.8 * torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0, 1.0]))


@pytest.mark.parametrize(("low", "kind"), [(0.0, "unsigned"), (-1.0, "mid_rise")])
def test_the_sign_of_the_first_values_decides_a_grid_of_one_bit(low: float, kind: Any) -> None:
    made = inputs(bits=1)
    made(torch.linspace(low, 1, 9))
    assert made.known_grid == IntegerGrid(1, kind)


def test_a_learned_scale_of_one_bit_puts_the_level_at_the_mean() -> None:
    x = torch.randn(4_000, generator=torch.Generator().manual_seed(0))
    made = inputs(bits=1)
    level = made(x).detach().abs()
    np.testing.assert_allclose(level, float(x.abs().mean()), rtol=1e-5)
    unsigned = inputs(bits=1)
    unsigned(x.abs())
    np.testing.assert_allclose(unsigned.scale.detach(), 2 * float(x.abs().mean()), rtol=1e-5)


FLOAT32 = "float32 reaches to 3.4e+38"


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ({"name": "constant", "value": 1e39}, f"its value becomes 1e+39; {FLOAT32}"),
        (
            {"name": "linear", "start": 1.0, "stop": -1e300},
            f"its value becomes -1e+298; {FLOAT32}",  # after the first hundredth
        ),
        (  # for less than a hundredth of training
            {"name": "piecewise", "values": [0.0, 1e39, 1.0], "at": [0.501, 0.502]},
            f"its value becomes 1e+39; {FLOAT32}",
        ),
    ],
    ids=["constant", "linear", "piecewise"],
)
def test_a_schedule_may_not_leave_float32(choice: dict[str, Any], said: str) -> None:
    name, params = choice["name"], {k: v for k, v in choice.items() if k != "name"}
    assert schedule_problems(name, params, lambda value: None) == [("", said)]


def test_alpha_may_not_leave_0_to_1_even_for_a_moment() -> None:
    blend = {"name": "piecewise", "values": [0.0, 5.0, 1.0], "at": [0.501, 0.502]}
    found = problems("weights", {"range": "absmax", "blend": blend})
    assert found == ["weights.blend: alpha must stay within 0 and 1"]


@pytest.mark.parametrize("side", ["weights", "activations"])
@pytest.mark.parametrize(("scale", "said"), [(1e-40, "1e-40"), (1e39, "1e+39"), (1e-9, "1e-09")])
def test_a_given_scale_is_one_that_float32_computes_with(
    side: str, scale: float, said: str
) -> None:
    found = problems(side, {"range": {"name": "fixed", "scale": scale}})
    why = f"{said} is no scale; 1e-08 to 1e+36 is what float32 computes with"
    assert found == [f"{side}.range.scale: {why}"]


def test_a_parameter_is_a_number_of_float32() -> None:
    found = problems("activations", {"range": {"name": "pact", "l2": 1e39}})
    assert found == [f"activations.range.l2: 1e+39 is too large; {FLOAT32}"]
