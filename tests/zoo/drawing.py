"""Hypothesis strategies: programs of the grammar, and recipes for them."""

import io
from contextlib import redirect_stdout
from functools import cache

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.zoo.grammar import OPERATORS, Program

Recipe = dict[str, object]


@st.composite
def weights(draw: st.DrawFn) -> Recipe:
    """Draw how weights are quantized."""
    bits = draw(st.integers(1, 8))
    grids = ["narrow", "full"] + ["mid_rise"] * (bits < 8) + ["ternary"] * (bits == 2)
    ranges = ["learned", "absmax", "mse", "percentile"]
    return {
        "bits": bits,
        "grid": draw(st.sampled_from(grids)),
        "granularity": draw(st.sampled_from(["per_channel", "per_tensor"])),
        "range": draw(st.sampled_from(ranges)),
    }


@st.composite
def activations(draw: st.DrawFn) -> Recipe:
    """Draw how inputs are quantized."""
    bits = draw(st.integers(1, 8))
    place = draw(st.sampled_from(["layer_inputs", "relu_outputs"]))
    grids = ["auto", "unsigned"]
    if place == "layer_inputs":
        grids += ["full", "narrow"] + ["asymmetric"] * (bits > 1)
    grid = draw(st.sampled_from(grids))
    ranges = ["min_max"] if grid == "asymmetric" else ["learned", "absmax", "percentile"]
    made = {
        "bits": bits,
        "grid": grid,
        "range": draw(st.sampled_from(ranges)),
        "place": place,
    }
    if grid == "unsigned" and draw(st.integers(0, 3)) == 0:
        made["rounding"] = "ceil"
    return made


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Draw a recipe: either side may be float, and a layer may differ from the others."""
    made: Recipe = {"weights": draw(weights()), "activations": draw(activations())}
    float_side = draw(st.integers(0, 11))
    if float_side < 2:
        made[("weights", "activations")[float_side]] = None
    if draw(st.integers(0, 2)) == 0:
        first: Recipe = {"weights": {"bits": 8, "grid": "narrow"}}
        made["overrides"] = [{"match": "*.0", **first}, {"match": "layers.*", "activations": None}]
        made["overrides"] = made["overrides"][: draw(st.integers(0, 1))]
    return made


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Draw a network with its recipe."""
    step = st.tuples(st.sampled_from(sorted(OPERATORS)), st.integers(0, 59))
    steps = draw(st.lists(step, min_size=3, max_size=10))
    first = ("convolution", draw(st.integers(0, 59)))
    return Program(
        steps=(first, *steps),
        ending=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 99)),
        quantization=draw(recipes()),
    )


@cache
def drawn(count: int) -> list[Program]:
    """Return the first programs that Hypothesis draws; always the same ones."""
    found: list[Program] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs())
    def collect(program: Program) -> None:
        found.append(program)

    with redirect_stdout(io.StringIO()):
        collect()
    return found[:count]
