"""The quantization section: defaults, combinations that exclude each other, overrides."""

from typing import Any

import pytest

from qtool.errors import RecipeError
from qtool.numerics.grid import IntegerGrid
from qtool.settings.quantization import Quantization
from qtool.settings.section import check

BLEND = {"name": "cubic", "start": 0.0, "stop": 1.0}


def read(data: Any) -> Quantization:
    return check(Quantization, data, "q")


def weights(**keys: Any) -> Any:
    return read({"weights": {"bits": 4} | keys}).weights


def activations(**keys: Any) -> Any:
    return read({"activations": {"bits": 4} | keys}).activations


def problems(data: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read(data)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_bits_are_all_that_must_be_said() -> None:
    for made in (weights(), activations()):
        assert str(made.range) == "auto"
        assert str(made.estimator) == "straight_through"
        assert made.blend is None
        assert made.scale_gradient == "lsq"
    assert (weights().granularity, weights().grid) == ("per_channel", "narrow")
    assert weights().learning_rate_scale == 1.0
    assert weights().saturation == "allow"
    assert (activations().grid, activations().rounding) == ("auto", "half_to_even")


def test_a_side_that_is_absent_or_null_stays_float() -> None:
    made = read({"weights": {"bits": 4}, "activations": None})
    assert made.activations is None
    assert read({}).weights is None


@pytest.mark.parametrize("estimator", [None, "straight_through", {"name": "straight_through"}])
def test_straight_through_may_be_said_or_not(estimator: Any) -> None:
    assert weights(estimator=estimator) == weights()


def test_a_blend_takes_the_place_of_an_estimator() -> None:
    made = weights(range="absmax", blend=BLEND)
    assert made.estimator is None
    assert made.blend.params == {"start": 0.0, "stop": 1.0}


def test_a_blend_may_stand_beside_an_estimator() -> None:
    made = weights(range="absmax", blend=BLEND, estimator="identity")
    assert (str(made.estimator), made.blend.name) == ("identity", BLEND["name"])


@pytest.mark.parametrize("side", ["weights", "activations"])
@pytest.mark.parametrize("beside", [{}, {"estimator": "identity"}])
def test_a_blend_excludes_a_learned_range(side: str, beside: dict[str, Any]) -> None:
    data = {side: {"bits": 4, "blend": BLEND} | beside}
    assert problems(data) == [f"{side}.blend: excludes range: learned; choose absmax or mse"]


@pytest.mark.parametrize("side", ["weights", "activations"])
@pytest.mark.parametrize(
    ("blend", "why"),
    [
        ({"start": 0.0, "stop": 0.9}, "alpha ends at 0.9; it must reach 1"),
        ({"start": 1.0, "stop": 0.0}, "alpha ends at 0.0; it must reach 1"),
        ({"start": 0.0, "stop": 1.5}, "alpha must stay within 0 and 1"),
        ({"start": -0.5, "stop": 1.0}, "alpha must stay within 0 and 1"),
        (
            {"name": "piecewise", "values": [0.0, 1.0, 0.5, 1.0], "at": [0.25, 0.5, 0.75]},
            "alpha falls from 1, where weights stop for good; let 1 be its last value",
        ),
    ],
)
def test_alpha_stays_within_zero_and_one_and_reaches_one(
    side: str, blend: dict[str, Any], why: str
) -> None:
    data = {side: {"bits": 4, "range": "ema_min_max", "blend": {"name": "linear"} | blend}}
    if side == "weights":
        data[side]["range"] = "absmax"
    assert problems(data) == [f"{side}.blend: {why}"]


@pytest.mark.parametrize(
    ("blend", "why"),
    [
        ({"phases": 0}, "blend.phases: 0 is not a whole number from 1 to 100"),
        ({"phases": 1.5}, "blend.phases: 1.5 is not a whole number from 1 to 100"),
        ({"phases": True}, "blend.phases: true is not a whole number from 1 to 100"),
        (
            {"name": "step", "phases": 2},
            "blend.phases: 2 phases need a shape that reaches 1 at its end only; choose one of: "
            "linear, cosine, cubic, polynomial, exponential",
        ),
    ],
)
def test_phases_are_counted_and_need_a_shape_that_rises(blend: dict[str, Any], why: str) -> None:
    data = {"weights": {"bits": 4, "range": "absmax", "blend": {"name": "cubic"} | blend}}
    assert problems(data) == [f"weights.{why}"]


def test_a_blend_may_rise_in_a_window_of_any_width() -> None:
    for window in ([0.0, 1.0], [0.2, 0.8], [0.5, 0.5], [1.0, 1.0]):
        assert weights(range="absmax", blend=BLEND | {"window": window}).blend is not None


def test_one_bit_is_mid_rise_whatever_the_grid() -> None:
    for grid in ("narrow", "full", "mid_rise"):
        assert weights(bits=1, grid=grid).integer_grid == IntegerGrid(1, "mid_rise")


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("grid", ["narrow", "full"])
def test_other_widths_take_the_grid_that_is_named(bits: int, grid: Any) -> None:
    assert weights(bits=bits, grid=grid).integer_grid == IntegerGrid(bits, grid)


def test_mid_rise_takes_up_to_seven_bits() -> None:
    assert weights(bits=7, grid="mid_rise").integer_grid == IntegerGrid(7, "mid_rise")
    assert problems({"weights": {"bits": 8, "grid": "mid_rise"}}) == [
        "weights.grid: mid_rise takes 1 to 7 bits; use narrow for 8"
    ]


def test_weights_do_not_follow_a_moving_average() -> None:
    assert problems({"weights": {"bits": 4, "range": "ema_min_max"}}) == [
        "weights.range: ema_min_max is for activations; use absmax or learned for weights"
    ]


@pytest.mark.parametrize("rule", ["absmax", "mse"])
def test_an_asymmetric_grid_needs_a_rule_that_finds_a_zero_point(rule: str) -> None:
    data = {"activations": {"bits": 4, "grid": "asymmetric", "range": rule}}
    assert problems(data) == [
        "activations.grid: asymmetric needs range: ema_min_max, min_max, calibrated or learned, "
        "which find a zero point"
    ]
    assert activations(grid="asymmetric", range="ema_min_max").grid == "asymmetric"


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({"weights": {}}, "weights.bits: missing"),
        ({"weights": {"bits": 0}}, "weights.bits: 0 is less than 1"),
        ({"weights": {"bits": 11}}, "weights.bits: 11 is more than 8"),
        ({"weights": {"bits": 4.0}}, "weights.bits: 4.0 is not a whole number"),
        ({"weights": {"bits": True}}, "weights.bits: true is not a whole number"),
        ({"weights": {"bits": 4, "refit_every": 0}}, "weights.refit_every: 0 is less than 1"),
        (
            {"weights": {"bits": 4, "learning_rate_scale": -1.0}},
            "weights.learning_rate_scale: -1.0 is less than 0.0",
        ),
        (
            {"weights": {"bits": 4, "grid": "unsigned"}},
            "weights.grid: unknown choice 'unsigned'; choose one of: narrow, full, mid_rise",
        ),
        (
            {"weights": {"bits": 4, "estimator": "straight_trough"}},
            "weights.estimator: unknown estimator 'straight_trough'; did you mean straight_thr",
        ),
        (
            {"weights": {"bits": 4, "range": {"name": "mse", "candidate": 5}}},
            "weights.range.candidate: mse has no parameter candidate; did you mean candidates?",
        ),
        ({"weight": {"bits": 4}}, "weight: unknown key; did you mean weights?"),
        (
            {"activations": {"bits": 4, "granularity": "per_tensor"}},
            "activations.granularity: unknown key; choose one of: ",
        ),
        ({"overrides": [{}]}, "overrides.0.match: missing"),
        (
            {"overrides": [{"match": []}]},
            "overrides.0.match: names no layer; give a module name or a pattern such as layer1.*",
        ),
        ({"overrides": {"match": "a"}}, "overrides: {'match': 'a'} is not a list"),
    ],
)
def test_a_mistake_is_named_with_its_place(data: Any, line: str) -> None:
    (found,) = problems(data)
    assert found.startswith(line)


def test_all_mistakes_are_listed_at_once() -> None:
    data = {"weights": {"bits": 11, "grid": "x"}, "activations": {"bitz": 3}}
    places = {line.split(":")[0] for line in problems(data)}
    assert places == {"weights.bits", "weights.grid", "activations.bitz"}


def test_an_override_inherits_what_it_does_not_say() -> None:
    made = read(
        {
            "weights": {"bits": 2, "range": {"name": "mse", "candidates": 9}, "grid": "full"},
            "activations": {"bits": 3, "range": "absmax"},
            "overrides": [{"match": "stem", "weights": {"bits": 8}}],
        }
    )
    inner, inputs, where = made.for_layer("stem")
    assert inner is not None
    assert (inner.bits, inner.grid, str(inner.range)) == (8, "full", "mse(candidates=9)")
    assert inputs == made.activations
    assert where == "overrides.0"
    assert made.for_layer("head") == (made.weights, made.activations, "quantization")


def test_null_in_an_override_leaves_that_side_float() -> None:
    made = read(
        {
            "weights": {"bits": 2},
            "activations": {"bits": 3},
            "overrides": [
                {"match": "a", "weights": None},
                {"match": "b", "activations": None},
            ],
        }
    )
    assert made.for_layer("a")[:2] == (None, made.activations)
    assert made.for_layer("b")[:2] == (made.weights, None)


def test_an_override_may_quantize_what_is_float_elsewhere() -> None:
    made = read({"overrides": [{"match": "a", "weights": {"bits": 4}}]})
    inner = made.for_layer("a")[0]
    assert inner is not None
    assert inner.bits == 4
    assert made.for_layer("b")[0] is None
    assert problems({"overrides": [{"match": "a", "weights": {"grid": "full"}}]}) == [
        "overrides.0.weights.bits: missing"
    ]


def test_the_first_override_that_matches_wins() -> None:
    made = read(
        {
            "weights": {"bits": 2},
            "overrides": [
                {"match": ["head", "*.conv1"], "weights": {"bits": 3}},
                {"match": "layer1.*", "weights": {"bits": 5}},
                {"match": "*", "weights": {"bits": 7}},
            ],
        }
    )
    bits = {}
    for name in ("head", "layer1.conv1", "layer1.conv2", "conv1"):
        inner = made.for_layer(name)[0]
        assert inner is not None
        bits[name] = inner.bits
    assert bits == {"head": 3, "layer1.conv1": 3, "layer1.conv2": 5, "conv1": 7}


def test_a_blend_in_an_override_replaces_an_estimator_and_the_reverse() -> None:
    blended = read(
        {
            "weights": {"bits": 4, "range": "absmax", "estimator": "identity"},
            "overrides": [{"match": "a", "weights": {"blend": BLEND}}],
        }
    ).for_layer("a")[0]
    assert blended is not None
    assert blended.estimator is None
    assert blended.blend is not None
    plain = read(
        {
            "weights": {"bits": 4, "range": "absmax", "blend": BLEND},
            "overrides": [
                {"match": "a", "weights": {"estimator": "identity"}},
                {"match": "b", "weights": {"blend": None}},
            ],
        }
    )
    for name, estimator in (("a", "identity"), ("b", "straight_through")):
        inner = plain.for_layer(name)[0]
        assert inner is not None
        assert (inner.blend, str(inner.estimator)) == (None, estimator)


def test_an_override_changes_one_of_both_a_blend_and_an_estimator_and_keeps_the_other() -> None:
    both = read(
        {
            "weights": {"bits": 4, "range": "absmax", "blend": BLEND, "estimator": "identity"},
            "overrides": [
                {"match": "a", "weights": {"estimator": "straight_through"}},
                {"match": "b", "weights": {"blend": "linear"}},
                {"match": "c", "weights": {"estimator": None}},
                {"match": "d", "weights": {"blend": None}},
            ],
        }
    )
    found = {name: both.for_layer(name)[0] for name in "abcd"}
    assert {
        name: (each.estimator and each.estimator.name, each.blend and each.blend.name)
        for name, each in found.items()
        if each is not None
    } == {
        "a": ("straight_through", "cubic"),
        "b": ("identity", "linear"),
        "c": (None, "cubic"),
        "d": ("identity", None),
    }


def test_what_an_override_makes_of_the_settings_is_checked() -> None:
    data = {
        "weights": {"bits": 4, "grid": "mid_rise"},
        "activations": {"bits": 4},
        "overrides": [
            {"match": "a", "weights": {"bits": 8}},
            {"match": "b", "weights": {"blend": BLEND}, "activations": {"grid": "mid_rise"}},
            {"match": "c", "weights": {"bitz": 8}},
        ],
    }
    assert [line.split(": ")[0] for line in problems(data)] == [
        "overrides.0.weights.grid",
        "overrides.1.weights.blend",
        "overrides.1.activations.grid",
        "overrides.2.weights.bitz",
    ]


def test_a_dumped_section_reads_back_as_itself() -> None:
    made = read(
        {
            "weights": {"bits": 4, "range": "absmax", "blend": BLEND},
            "activations": {"bits": 3, "estimator": "clipped_relu"},
            "overrides": [
                {"match": "a", "weights": None},
                {"match": ["b", "c.*"], "activations": {"bits": 8}},
            ],
        }
    )
    again = read(made.model_dump())
    for name in ("a", "b", "c.d", "e"):
        assert again.for_layer(name) == made.for_layer(name)


def test_a_blend_goes_from_0_to_1_where_it_does_not_say() -> None:
    made = read({"weights": {"bits": 4, "range": "absmax", "blend": "cubic"}})
    assert made.weights is not None
    assert made.weights.blend is not None
    assert made.weights.blend.params == {"start": 0.0, "stop": 1.0}


AT_VALUES: dict[str, Any] = {"bits": 4, "place": "every_value"}


def test_joins_have_8_bits_unless_the_recipe_says_otherwise() -> None:
    assert activations().join_bits == 8
    assert activations(join_bits=2).join_bits == 2
    assert problems({"activations": AT_VALUES | {"join_bits": 1}}) == [
        "activations.join_bits: 1 is less than 2"
    ]
    assert problems(
        {"overrides": [{"match": "a", "activations": AT_VALUES | {"join_bits": 9}}]}
    ) == ["overrides.0.activations.join_bits: 9 is more than 8"]


@pytest.mark.parametrize(
    ("first", "second"), [("every_value", "relu_outputs"), ("relu_outputs", "every_value")]
)
def test_places_at_values_and_at_relu_modules_exclude_each_other(first: str, second: str) -> None:
    say = f"say place: {first} or layer_inputs here, or {second} everywhere"
    why = f"{second} excludes {first}, which others have; {say}"
    data: dict[str, Any] = {
        "activations": {"bits": 4, "place": first},
        "overrides": [
            {"match": "a", "activations": {"place": "layer_inputs"}},
            {"match": "b", "activations": {"place": second}},
        ],
    }
    assert problems(data) == [f"overrides.1.activations.place: {why}"]
    data["activations"] = None
    data["overrides"][0]["activations"] = {"bits": 4, "place": first}
    data["overrides"][1]["activations"]["bits"] = 4
    assert problems(data) == [f"overrides.1.activations.place: {why}"]


def test_an_override_speaks_of_sites_where_its_pattern_has_a_colon() -> None:
    made = read(
        {
            "activations": AT_VALUES,
            "overrides": [
                {"match": "layer1.*", "activations": {"bits": 2}},
                {"match": ["head", "*:add*"], "activations": {"bits": 5}},
                {"match": "layer1.0:relu1", "activations": None},
            ],
        }
    )
    assert made.for_layer("layer1.0.conv1")[2] == "overrides.0"
    assert made.for_layer("head")[2] == "overrides.1"
    for names, override in (
        (["layer1.0:relu0", "layer1.0:add0"], 1),
        (["layer1.0:relu1"], 2),
        (["layer1.0:relu0"], None),
    ):
        expected = None if override is None else (f"overrides.{override}", made.overrides[override])
        assert made.override_of(*names) == expected


def test_sites_have_no_weights() -> None:
    assert problems({"overrides": [{"match": ["a", "b:add0"], "weights": {"bits": 4}}]}) == [
        "overrides.0.weights: 'b:add0' is a site, which has no weights"
    ]
