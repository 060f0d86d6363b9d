"""The rules of placement, on graphs of values made by hand; each expected placement, too."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
import torchvision
from torch import nn

from qtool.errors import ModelError, RecipeError
from qtool.graph.inputs import Inputs
from qtool.graph.norms import channel_norms
from qtool.graph.recorder import record_forward
from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.value_tape import record_values
from qtool.graph.values import Value
from qtool.quantizers.door.modes import watched_in
from qtool.quantizers.places.placement import Placement
from qtool.quantizers.places.rules import place
from qtool.quantizers.places.wanted import wants_of
from qtool.settings.quantization import Quantization
from qtool.settings.section import check
from tests.quantizers.passes import Pass, placed


def grids(placement: Placement) -> dict[str, str]:
    """Return each site with bits, form, who reads it, and its group where that is another."""
    found: dict[str, str] = {}
    for name, site in placement.sites.items():
        words = [f"{site.settings.bits} {site.form} {site.use}"]
        if site.top is not None:
            words.append(f"to {site.top:g}")
        if str(site.group) != name:
            words.append(f"of {site.group}")
        found[name] = " ".join(words)
    return found


def joins(placement: Placement) -> dict[str, str]:
    """Return each join with its kind, operands and output."""
    return {
        name: f"{join.kind}({', '.join(join.inputs)}) -> {join.output}"
        for name, join in placement.joins.items()
    }


def test_a_quantizer_stands_behind_the_norm_and_the_relu_that_follow_a_layer() -> None:
    net = Pass()
    x = net.relu(net.norm(net.conv(net.input(), "conv1"), "norm1"))
    x = net("flatten", net("max_pool", net.conv(x, "conv2")))
    made = placed(net, net.linear(x, "head"))
    assert grids(made) == {
        ":input0": "8 free image",
        ":relu0": "4 rectified layers",
        ":conv2d1": "4 free layers",
    }
    assert made.layers == {"conv1": ":input0", "conv2": ":relu0", "head": ":conv2d1"}
    assert made.outputs == {"conv1": ":relu0", "conv2": ":conv2d1"}
    assert made.absorbed == {"norm1": ":relu0", ":relu0": ":relu0"}
    assert made.repeats == {":max_pool0": ":conv2d1", ":flatten0": ":conv2d1"}
    assert (made.joins, made.requantized, made.float_joins) == ({}, frozenset(), {})
    at = made.sites[":relu0"]
    assert (str(at.maker), at.readers, at.settings.grid) == (":conv2d0", ("conv2",), "unsigned")
    image = made.sites[":input0"]
    assert (image.site, image.maker) == (CallSite("", "input", 0), None)


def residual(net: Pass, x: Value) -> Value:
    """Return x + conv2(relu(conv1(x))), rectified, as a basic block has it."""
    with net.block("block"):
        y = net.relu(net.norm(net.conv(x, "block.conv1"), "block.norm1"))
        y = net.norm(net.conv(y, "block.conv2"), "block.norm2")
        return net.relu(net("add", y, x))


def test_values_of_joins_have_8_bits_and_layers_round_them_again() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "stem"))
    x = residual(net, x)
    x = net("avg_pool", net.conv(x, "last"), output=(1, 1), kernel=(8, 8))
    made = placed(net, net.linear(net("flatten", x), "head"))
    assert grids(made) == {
        ":input0": "8 free image",
        ":relu0": "8 rectified join",
        "block:relu0": "4 rectified layers",
        "block:batch_norm1": "8 free join",
        "block:relu1": "4 rectified layers",
        ":conv2d1": "8 free join",
        ":avg_pool0": "4 free layers",
    }
    assert joins(made) == {
        "block:add0": "add(block:batch_norm1, :relu0) -> block:relu1",
        ":avg_pool0": "global_pool(:conv2d1) -> :avg_pool0",
    }
    assert made.requantized == {"block.conv1"}
    assert made.layers["block.conv1"] == ":relu0"
    assert made.absorbed["block:relu1"] == "block:relu1"
    assert made.absorbed["block.norm2"] == "block:batch_norm1"
    assert made.sites[":relu0"].readers == ("block.conv1", "block:add0")
    assert str(made.sites["block:relu1"].maker) == "block:add0"


def test_nothing_is_rounded_again_where_both_have_the_same_bits() -> None:
    net = Pass()
    x = residual(net, net.relu(net.conv(net.input(), "stem")))
    made = placed(net, net.linear(x, "head"), bits=8)
    assert made.requantized == frozenset()
    net = Pass()
    x = residual(net, net.relu(net.conv(net.input(), "stem")))
    made = placed(net, net.linear(x, "head"), bits=8, join_bits=6)  # more bits gain nothing
    assert made.requantized == frozenset()
    assert made.sites[":relu0"].settings.bits == 6


def test_a_clip_from_0_is_the_quantizers_and_another_is_not() -> None:
    net = Pass()
    x = net("clip", net.conv(net.input(), "conv1"), low=0.0, high=6.0)
    x = net("clip", net.conv(x, "conv2"), low=-1.0, high=1.0)
    made = placed(net, net.linear(x, "head"))
    assert grids(made) == {
        ":input0": "8 free image",
        ":clip0": "4 rectified layers to 6",
        ":conv2d1": "8 free join",
        ":clip1": "4 free layers",
    }
    assert made.absorbed == {":clip0": ":clip0"}


def test_a_relu_that_no_maker_absorbs_rounds_again() -> None:
    net = Pass()
    x = net.conv(net.input(), "stem")
    y = net.conv(net.relu(x), "conv1")
    made = placed(net, net.linear(net("add", x, y), "head"))
    assert grids(made) == {
        ":input0": "8 free image",
        ":conv2d0": "8 free join",
        ":relu0": "4 rectified layers",
        ":conv2d1": "8 free join",
        ":add0": "4 free layers",
    }
    assert joins(made) == {
        ":relu0": "requantize(:conv2d0) -> :relu0",
        ":add0": "add(:conv2d0, :conv2d1) -> :add0",
    }
    assert made.absorbed == {}
    assert str(made.sites[":relu0"].maker) == ":relu0"


def test_a_concatenation_shares_one_grid_also_over_several() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "stem"))
    a = net.relu(net.conv(x, "a"))
    ab = net("cat", x, a, dim=1)
    b = net("max_pool", net.relu(net.conv(ab, "b")))
    c = net("cat", ab, b, dim=1)
    made = placed(net, net.linear(net.conv(c, "last"), "head"))
    assert grids(made) == {
        ":input0": "8 free image",
        ":relu0": "8 rectified join",
        ":relu1": "8 rectified join of :relu0",
        ":cat0": "8 free join of :relu0",
        ":relu2": "8 rectified join of :relu0",
        ":cat1": "8 free join of :relu0",
        ":conv2d3": "4 free layers",
    }
    assert {site.settings.grid for name, site in made.sites.items() if "relu" in name} == {
        "unsigned"
    }
    assert made.sites[":cat1"].settings == made.sites[":relu0"].settings
    assert made.requantized == {"a", "b", "last"}


def test_a_group_with_negative_values_has_its_quantizer_where_there_is_no_relu() -> None:
    net = Pass()
    x = net("clip", net.conv(net.input(), "a"), low=0.0, high=6.0)
    x = net("cat", x, net.conv(x, "b"), dim=1)
    made = placed(net, net.linear(x, "head"))
    assert grids(made)[":clip0"] == "8 rectified join to 6 of :conv2d1"
    assert grids(made)[":conv2d1"] == "8 free join"
    assert made.sites[":clip0"].settings.grid == "auto"


def test_what_a_sigmoid_makes_is_no_member_of_a_group() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "a"))
    gate = net("sigmoid", net.conv(x, "b"))
    made = placed(net, net.linear(net("cat", x, gate, dim=1), "head"))
    assert grids(made) == {
        ":input0": "8 free image",
        ":relu0": "8 rectified join",
        ":conv2d1": "8 free join",
        ":sigmoid0": "8 unit join",
        ":cat0": "8 free join of :relu0",
    }
    assert joins(made)[":cat0"] == "cat(:relu0, :sigmoid0) -> :cat0"


def test_squeeze_and_excitation_runs_in_integers() -> None:
    net = Pass()
    x = net("silu", net.norm(net.conv(net.input(), "conv"), "norm"))
    y = net("avg_pool", x, output=(1, 1), kernel=(8, 8))
    y = net("silu", net.conv(y, "fc1"))
    y = net("sigmoid", net.conv(y, "fc2"))
    made = placed(net, net.linear(net.conv(net("mul", y, x), "last"), "head"))
    assert grids(made) == {
        ":input0": "8 free image",
        ":batch_norm0": "8 free join",
        ":silu0": "8 free join",
        ":avg_pool0": "4 free layers",
        ":conv2d1": "8 free join",
        ":silu1": "4 free layers",
        ":conv2d2": "8 free join",
        ":sigmoid0": "8 unit join",
        ":mul0": "4 free layers",
        ":conv2d3": "4 free layers",
    }
    assert joins(made) == {
        ":silu0": "silu(:batch_norm0) -> :silu0",
        ":avg_pool0": "global_pool(:silu0) -> :avg_pool0",
        ":silu1": "silu(:conv2d1) -> :silu1",
        ":sigmoid0": "sigmoid(:conv2d2) -> :sigmoid0",
        ":mul0": "mul(:sigmoid0, :silu0) -> :mul0",
    }


def test_hardswish_fixes_its_input_and_a_hardsigmoid_behind_a_layer_is_absorbed() -> None:
    net = Pass()
    x = net("hardswish", net.norm(net.conv(net.input(), "conv"), "norm"))
    y = net("hardsigmoid", net.conv(net("avg_pool", x, output=(1, 1), kernel=(8, 8)), "fc"))
    made = placed(net, net.conv(net("mul", y, x), "last"))
    assert grids(made) == {
        ":input0": "8 free image",
        ":batch_norm0": "8 hardswish join",
        ":hardswish0": "8 free join",
        ":avg_pool0": "4 free layers",
        ":hardsigmoid0": "8 unit join",
        ":mul0": "4 free layers",
    }
    assert joins(made)[":hardswish0"] == "hardswish(:batch_norm0) -> :hardswish0"
    assert made.absorbed[":hardsigmoid0"] == ":hardsigmoid0"
    assert made.outputs == {"conv": ":batch_norm0", "fc": ":hardsigmoid0"}
    assert str(made.sites[":hardsigmoid0"].maker) == ":conv2d1"


def test_a_hardsigmoid_elsewhere_is_a_join() -> None:
    net = Pass()
    x = net.conv(net.input(), "conv")
    made = placed(net, net.conv(net("mul", net("hardsigmoid", x), x), "last"))
    assert joins(made) == {
        ":hardsigmoid0": "hardsigmoid(:conv2d0) -> :hardsigmoid0",
        ":mul0": "mul(:hardsigmoid0, :conv2d0) -> :mul0",
    }
    assert grids(made)[":hardsigmoid0"] == "8 unit join"


def test_a_norm_that_stays_is_a_depthwise_layer_and_reads_8_bits() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "conv"))
    y = net.relu(net("batch_norm", x, leaf="norm"))
    x = net("add", net.conv(y, "inner"), x)
    made = placed(net, net.linear(x, "head"), channel_norms=["norm"], join_bits=6)
    assert grids(made)[":relu0"] == "8 rectified join"
    assert grids(made)[":relu1"] == "4 rectified layers"
    norm = made.joins[":batch_norm0"]
    assert (norm.kind, norm.norm, norm.facts["channels"]) == ("depthwise", "norm", 4)
    assert norm.output == ":relu1"
    assert made.absorbed[":relu1"] == ":relu1"


def test_average_pooling_is_a_depthwise_layer_or_passes_on() -> None:
    net = Pass()
    x = net("avg_pool", net.conv(net.input(), "conv"), kernel=(2, 2), stride=(2, 2))
    x = net("avg_pool", net.conv(x, "second"), same=True, kernel=(1, 1))
    x = net("avg_pool", net.conv(x, "third"), whole=True, kernel=(8, 8))  # of this size alone
    made = placed(net, net.linear(x, "head"))
    assert joins(made) == {
        ":avg_pool0": "depthwise(:conv2d0) -> :avg_pool0",
        ":avg_pool2": "depthwise(:conv2d2) -> :avg_pool2",
    }
    assert made.repeats == {":avg_pool1": ":conv2d1"}
    assert made.layers["third"] == ":conv2d1"


def test_pooling_to_one_pixel_is_none_that_passes_on_whatever_the_image_is() -> None:
    net = Pass()
    x = net("avg_pool", net.conv(net.input(), "conv"), output=(1, 1), kernel=(1, 1), same=True)
    made = placed(net, net.linear(x, "head"))
    assert joins(made) == {":avg_pool0": "global_pool(:conv2d0) -> :avg_pool0"}


def transformer(net: Pass) -> Value:
    """Return what a block of a transformer makes, behind a convolution that cuts up the image."""
    x = net("reshape", net.conv(net.input(), "patches"))
    x = net("add", x, constants=1)
    y = net("layer_norm", x, leaf="norm1")
    q, k, v = (net.linear(y, name) for name in "qkv")
    x = net("add", net.linear(net("attention", q, k, v), "out"), x, constants=0)
    y = net("gelu", net.linear(net("layer_norm", x, leaf="norm2"), "up"))
    return net("add", net.linear(y, "down"), x, constants=0)


def test_of_a_transformer_the_layers_are_integers_and_the_rest_is_float() -> None:
    net = Pass()
    x = net("layer_norm", transformer(net), leaf="last")
    made = placed(net, net.linear(net("slice", x), "head"))
    assert grids(made) == {
        ":input0": "8 free image",
        ":conv2d0": "8 free join",
        ":layer_norm0": "4 free layers",
        ":attention0": "4 free layers",
        ":layer_norm1": "4 free layers",
        ":gelu0": "4 free layers",
        ":layer_norm2": "4 free layers",
    }
    assert made.joins == {}
    assert sorted(made.layers) == sorted(net.layers)
    assert made.outputs == {"patches": ":conv2d0"}
    assert sorted(made.float_joins) == [":add0", ":add1", ":add2"]
    assert made.float_joins[":add1"] == "it reads :add0, which is float"


def test_a_float_sum_that_layers_read_is_rounded_behind_it() -> None:
    net = Pass()
    x = net("layer_norm", net.conv(net.input(), "stem"), leaf="norm")
    y = net("mul", net.linear(net("gelu", net.conv(x, "inner")), "outer"), constants=1)
    x = net("add", y, x, constants=0)
    made = placed(net, net.linear(net.conv(x, "last"), "head"))
    assert grids(made) == {
        ":input0": "8 free image",
        ":conv2d0": "8 free join",
        ":layer_norm0": "8 free join",  # the sum reads it, too
        ":conv2d1": "8 free join",
        ":gelu0": "4 free layers",
        ":add0": "4 free layers",
        ":conv2d2": "4 free layers",
    }
    assert made.requantized == {"inner"}


def test_the_last_layers_stay_float_and_a_convolution_before_float_code_does_not() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "conv"))
    boxes, scores = net.conv(x, "boxes"), net.relu(net.conv(x, "scores"))
    made = placed(net, boxes, net("flatten", net("avg_pool", scores, output=(1, 1), kernel=(8, 8))))
    assert grids(made)[":relu1"] == "8 rectified join"
    assert made.outputs == {"conv": ":relu0", "scores": ":relu1"}
    assert made.float_joins == {
        ":avg_pool0": "no quantized layer reads what it makes, nor anything else in integers"
    }
    net = Pass()  # also through operators that pass it on
    assert placed(net, net("reshape", net.conv(net.input(), "conv"))).outputs == {}


def test_a_layer_called_with_different_values_keeps_its_own_quantizer() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "stem"))
    x = net.relu(net.conv(x, "shared"))
    x = net.relu(net.conv(x, "shared"))
    made = placed(net, net.linear(x, "head"))
    assert made.layers == {"stem": ":input0", "head": ":relu2"}
    assert grids(made)[":relu0"] == "8 rectified join"
    assert grids(made)[":relu2"] == "4 rectified layers"
    assert made.outputs == {"stem": ":relu0"}
    assert ":relu2" not in made.absorbed


def test_a_block_called_twice_has_one_quantizer_at_each_site() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "stem"))
    x = residual(net, residual(net, x))
    made = placed(net, net.linear(x, "head"))
    # block.conv1 reads the stem's value first and its own block's then; so does the sum
    assert made.layers == {"stem": ":input0", "block.conv2": "block:relu0", "head": "block:relu1"}
    assert grids(made)["block:relu0"] == "4 rectified layers"
    why = "block is called several times, and its operands come from other places each time"
    assert made.float_joins == {"block:add0": why}
    assert made.outputs["block.conv1"] == "block:relu0"


def test_what_follows_a_block_in_only_one_of_its_calls_is_not_absorbed() -> None:
    net = Pass()
    x = net.input()
    for _ in range(2):
        with net.block("block"):
            x = net.conv(x, "block.conv")
        x = net.relu(x) if len(net.operations) == 1 else net.linear(x, "head")
    made = placed(net, x)
    assert made.outputs == {"block.conv": "block:conv2d0"}
    assert joins(made) == {":relu0": "requantize(block:conv2d0) -> :relu0"}
    assert made.layers == {"head": "block:conv2d0"}


def test_what_layers_alone_read_may_be_rounded_up_and_joins_round_to_nearest() -> None:
    net = Pass()
    x = residual(net, net.relu(net.conv(net.input(), "stem")))
    made = placed(net, net.linear(x, "head"), rounding="ceil")
    rounding = {name: site.settings.rounding for name, site in made.sites.items()}
    assert rounding == {
        ":input0": "ceil",
        ":relu0": "half_to_even",
        "block:relu0": "ceil",
        "block:batch_norm1": "half_to_even",
        "block:relu1": "ceil",
    }


def test_ranges_and_grids_for_what_is_never_negative_go_where_nothing_is() -> None:
    net = Pass()
    x = residual(net, net.relu(net.conv(net.input(), "stem")))
    x = net.linear(x, "head")
    half_normal = placed(net, x, range="half_normal")
    ranges = {name: site.settings.range.name for name, site in half_normal.sites.items()}
    assert ranges == {
        ":input0": "learned",
        ":relu0": "half_normal",
        "block:relu0": "half_normal",
        "block:batch_norm1": "learned",
        "block:relu1": "half_normal",
    }
    note = "range learned, since half_normal is for values that are never below 0"
    assert half_normal.sites["block:batch_norm1"].note == note
    unsigned = placed(net, x, grid="unsigned")
    assert unsigned.sites["block:batch_norm1"].settings.grid == "auto"
    assert unsigned.sites["block:relu1"].settings.grid == "unsigned"


def test_an_override_of_a_layer_speaks_of_what_it_reads() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "stem"))
    x = net.relu(net.conv(x, "conv"))
    x = net.relu(net.conv(x, "plain"))
    overrides = [
        {"match": "stem", "activations": {"bits": 5}},
        {"match": "conv", "activations": {"bits": 6, "range": "ema_min_max"}},
        {"match": "head", "activations": None},
    ]
    made = placed(net, net.linear(x, "head"), overrides=overrides)
    assert grids(made) == {
        ":input0": "5 free image",
        ":relu0": "6 rectified layers",
        ":relu1": "4 rectified layers",
        ":relu2": "8 rectified join",  # head reads it as a float operator does
    }
    assert made.sites[":relu0"].settings.range.name == "ema_min_max"
    assert (made.sites[":relu0"].wants, made.sites[":relu1"].wants) == (
        "overrides.1",
        "quantization",
    )
    assert "head" not in made.layers


def ranges_of_image(
    *overrides: Mapping[str, object], second: bool = False, **activations: object
) -> list[str]:
    """Return the ranges of the image, which one layer reads or two, and of a value after it."""
    net = Pass()
    image = net.input()
    x = net.relu(net.conv(image, "stem"))
    others = [net.conv(image, "other")] if second else []
    made = placed(net, net.linear(x, "head"), *others, overrides=overrides, **activations)
    return [made.sites[name].settings.range.name for name in (":input0", ":relu0")]


def test_the_range_of_an_image_that_is_not_said_is_found() -> None:
    assert ranges_of_image() == ["mse", "learned"]
    assert ranges_of_image(range="auto") == ["mse", "learned"]
    for match in ("stem", ":input0"):
        widths: Mapping[str, object] = {"match": match, "activations": {"bits": 6}}
        assert ranges_of_image(widths) == ["mse", "learned"]


def test_the_range_of_an_image_that_is_said_is_kept() -> None:
    assert ranges_of_image(range="learned") == ["learned", "learned"]
    assert ranges_of_image(range="pact") == ["pact", "pact"]
    for match, second in (("stem", False), (":input0", False), ("stem", True)):
        said = {"match": match, "activations": {"range": "learned"}}
        assert ranges_of_image(said, second=second) == ["learned", "learned"]
    of_stem: Mapping[str, object] = {"match": "stem", "activations": {"range": "learned"}}
    assert ranges_of_image(of_stem, range="ema_min_max") == ["learned", "ema_min_max"]


def test_a_zero_point_that_learns_stays_with_the_range_of_an_image() -> None:
    assert ranges_of_image(grid="asymmetric") == ["learned", "learned"]


def two_readers(**activations: object) -> Placement:
    net = Pass()
    x = net.relu(net.conv(net.input(), "stem"))
    net.layers += ["a", "b"]
    y = net.relu(net.conv(x, "a")), net.relu(net.conv(x, "b"))
    overrides: list[Mapping[str, object]] = [{"match": "b", "activations": {"bits": 6}}]
    if activations:
        overrides.insert(0, {"match": ":relu0", "activations": activations})
    return placed(net, net.linear(net("cat", *y, dim=1), "head"), overrides=overrides)


def test_layers_that_want_different_things_of_one_value_are_refused() -> None:
    why = (
        r"a and b read one value, which :relu0 makes, and want different things \(bits: 4 and 6\); "
        r"give both the same by overrides, .* \{match: :relu0, activations: ...\}"
    )
    with pytest.raises(ModelError, match=why):
        two_readers()


def test_an_override_of_a_site_speaks_of_what_it_makes_and_wins() -> None:
    made = two_readers(bits=7)
    assert grids(made)[":relu0"] == "7 rectified layers"
    assert made.sites[":relu0"].wants == "overrides.0"
    assert (made.layers["a"], made.layers["b"]) == (":relu0", ":relu0")
    assert made.requantized.isdisjoint({"a", "b"})


@pytest.mark.parametrize("match", ["block:relu1", "block:add0", "*:add*"])
def test_a_site_goes_by_its_quantizer_or_by_the_call_that_makes_its_value(match: str) -> None:
    net = Pass()
    x = residual(net, net.relu(net.conv(net.input(), "stem")))
    x = residual_of(net, x)
    overrides = [{"match": match, "activations": {"join_bits": 5}}]
    made = placed(net, net.linear(x, "head"), overrides=overrides)
    bits = {name: site.settings.bits for name, site in made.sites.items()}
    assert bits["block:relu1"] == 5
    assert bits[":relu0"] == 8


def residual_of(net: Pass, x: Value) -> Value:
    return net.relu(net("add", net.conv(x, "again"), x))


def test_a_value_that_an_override_leaves_float_takes_what_needs_it_along() -> None:
    net = Pass()
    x = residual(net, net.relu(net.conv(net.input(), "stem")))
    overrides = [{"match": "block:batch_norm1", "activations": None}]
    made = placed(net, net.linear(x, "head"), overrides=overrides)
    assert made.without_quantizer == {"block:batch_norm1": "overrides.0 leaves what it makes float"}
    assert made.float_joins == {"block:add0": "it reads block:batch_norm1, which is float"}
    assert made.advice == {"block:add0": "quantize what makes block:batch_norm1, if it is a layer"}
    assert grids(made) == {
        ":input0": "8 free image",
        ":relu0": "8 rectified join",  # of the float sum, and of block.conv1
        "block:relu0": "4 rectified layers",
        "block:relu1": "4 rectified layers",  # a float function that a layer reads
    }
    assert made.outputs == {"stem": ":relu0", "block.conv1": "block:relu0"}


def test_the_result_that_is_dropped_in_place_leaves_its_value_float() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "stem"))
    y = net("add", net.conv(x, "conv"), x, lost=True)
    made = placed(net, net.linear(y, "head"))
    assert list(made.float_joins) == [":add0"]
    assert "writes to a tensor in place" in made.without_quantizer[":add0"]
    assert "head" not in made.layers  # has a quantizer of its own
    assert grids(made)[":relu0"] == "8 rectified join"


def test_a_pattern_that_no_site_has_is_a_mistake() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "stem"))
    y = net.linear(net("gelu", net.conv(x, "conv")), "head")
    for match, why in (
        (":rela0", "':rela0' matches no site; did you mean :relu0?"),
        (":linear0", "no quantizer stands at :linear0, which ':linear0' matches"),
    ):
        overrides = [{"match": ["stem", match], "activations": {"bits": 5}}]
        with pytest.raises(RecipeError) as caught:
            placed(net, y, overrides=overrides)
        assert str(caught.value).splitlines()[1:] == [f"  overrides.0.match: {why}"]


def test_an_override_that_does_not_go_with_what_it_inherits_is_a_mistake() -> None:
    net = Pass()
    x = residual(net, net.relu(net.conv(net.input(), "stem")))
    overrides = [{"match": ":relu0", "activations": {"estimator": "hard_tanh"}}]
    with pytest.raises(RecipeError, match=r"overrides\.0\.activations\.estimator: .* bits: 1"):
        placed(net, net.linear(x, "head"), overrides=overrides, bits=1)


def member_overrides() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "a"))
    x = net("cat", x, net.relu(net.conv(x, "b")), dim=1)
    overrides = [{"match": f":relu{n}", "activations": {"bits": 5 + n}} for n in range(2)]
    placed(net, net.linear(x, "head"), overrides=overrides)


def gate_override() -> None:
    net = Pass()
    x = net.conv(net.input(), "a")
    x = net("mul", x, net("sigmoid", x))
    overrides = [{"match": ":sigmoid0", "activations": {"bits": 4}}]
    placed(net, net.linear(x, "head"), overrides=overrides)


REFUSED: Mapping[str, tuple[Callable[[], object], str]] = {
    "readers": (two_readers, "a and b read one value, which :relu0 makes"),
    "members": (member_overrides, ":relu0 and :relu1 are concatenated, so that they share a grid"),
    "gate": (gate_override, ":sigmoid0 has a grid of 8 bits that its function fixes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_value_cannot_have_is_refused(name: str) -> None:
    make, why = REFUSED[name]
    with pytest.raises(ModelError, match=why):
        make()


def stays_float(
    build: Callable[[Pass, Value], Value], overrides: Sequence[Mapping[str, object]] = ()
) -> Placement:
    """Return the placement of a convolution, a join of what it makes, and a layer behind that."""
    net = Pass()
    x = build(net, net.conv(net.input(), "stem"))
    return placed(net, net.linear(x, "head"), overrides=overrides)


def called_twice() -> Placement:
    net = Pass()
    x = residual(net, residual(net, net.relu(net.conv(net.input(), "stem"))))
    return placed(net, net.linear(x, "head"))


STAYS_FLOAT: Mapping[str, tuple[Callable[[], Placement], str, str]] = {
    "a constant": (
        lambda: stays_float(lambda net, x: net("add", x, constants=1)),
        ":add0",
        "it takes a number or a parameter, which is on no grid",
    ),
    "a constant that was computed": (
        lambda: stays_float(lambda net, x: net("mul", x, net("expand"), constants=0)),
        ":mul0",
        "it takes a number or a parameter, which is on no grid",
    ),
    "a function without a name": (
        lambda: stays_float(lambda net, x: net("mul", x, net("other", x, name="erf"))),
        ":mul0",
        "it reads what erf makes, which no quantizer can stand behind",
    ),
    "a float operand": (
        lambda: stays_float(lambda net, x: net("mul", x, net("gelu", x))),
        ":mul0",
        "it reads :gelu0, which is float",
    ),
    "a hardswish among others": (
        lambda: stays_float(lambda net, x: net("add", net("hardswish", x), x)),
        ":hardswish0",
        ":conv2d0, which it reads, has a grid that others need otherwise",
    ),
    "a hardswish behind a ReLU": (
        lambda: stays_float(lambda net, x: net("hardswish", net.relu(x))),
        ":hardswish0",
        ":relu0, which it reads, has a grid that others need otherwise",
    ),
    "windows of several sizes": (
        lambda: stays_float(lambda net, x: net("avg_pool", x, output=(3, 3))),
        ":avg_pool0",
        "its windows are not all of one size",
    ),
    "fewer pixels at the edges": (
        lambda: stays_float(lambda net, x: net("avg_pool", x, kernel=(3, 3), divisor=None)),
        ":avg_pool0",
        "it does not divide by the number of pixels in a window",
    ),
    "a norm of other things": (
        lambda: stays_float(lambda net, x: net("batch_norm", net.relu(x), leaf="norm")),
        ":batch_norm0",
        "norm is no gain and shift of the channels of an image",
    ),
    "an addition in place whose result is dropped": (
        lambda: stays_float(lambda net, x: net("add", x, x, lost=True)),
        ":add0",
        "it writes to a tensor in place",
    ),
    "operands from other places each time": (
        called_twice,
        "block:add0",
        "block is called several times",
    ),
    "nothing behind it": (
        lambda: stays_float(lambda net, x: net("softmax", net("add", x, x))),
        ":add0",
        "no quantized layer reads what it makes",
    ),
    "an override": (
        lambda: stays_float(
            lambda net, x: net("add", x, x), overrides=[{"match": ":add0", "activations": None}]
        ),
        ":add0",
        "overrides.0 leaves what it makes float",
    ),
}


@pytest.mark.parametrize("name", STAYS_FLOAT)
def test_a_join_that_stays_float_says_why(name: str) -> None:
    make, site, why = STAYS_FLOAT[name]
    made = make()
    assert made.float_joins[site].startswith(why)
    assert site not in made.joins
    assert made.advice[site]


def test_a_function_that_is_given_the_weight_of_a_layer_works_for_it() -> None:
    net = Pass()
    x = net("layer_norm", net.conv(net.input(), "patches"), leaf="norm")
    net.layers += ["qkv", "proj"]
    x = net("linear", net("roll", x), weight="qkv.weight")
    x = net("linear", net("softmax", x), weight="proj.weight")
    made = placed(net, net("linear", x, weight="a.matrix"))
    assert made.layers == {"patches": ":input0", "qkv": ":layer_norm0", "proj": ":softmax0"}


def test_layers_of_place_layer_inputs_keep_their_own_quantizers() -> None:
    net = Pass()
    x = net.relu(net.conv(net.input(), "stem"))
    x = net.relu(net.conv(x, "conv"))
    overrides = [{"match": "conv", "activations": {"place": "layer_inputs"}}]
    made = placed(net, net.linear(x, "head"), overrides=overrides)
    assert made.layers == {"stem": ":input0", "head": ":relu1"}
    assert grids(made)[":relu0"] == "8 rectified join"
    assert placed(net, x, place="layer_inputs") == Placement()


CONVOLUTIONS = {
    "resnet18": 20,
    "resnet50": 53,
    "mobilenet_v2": 52,
    "squeezenet1_1": 26,
    "googlenet": 57,
    "efficientnet_b0": 81,
    "shufflenet_v2_x1_0": 56,
    "mobilenet_v3_small": 52,
    "regnet_y_400mf": 85,
    "densenet121": 120,
}
FLOAT_JOINS = {"squeezenet1_1": [":avg_pool0"]}  # the network ends there


@pytest.mark.slow
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_convolution_of_a_known_network_is_between_two_quantizers(name: str) -> None:
    settings = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, **settings).eval()
    image = Inputs((torch.randn(1, 3, 64, 64),))
    told = record_forward(model, watched_in(model), image)
    section = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "every_value"}}
    recipe = check(Quantization, section, "q")
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    norms = told.batch_norms.values()
    stays = channel_norms(model, told)
    made = place(record_values(model, image), recipe, wants_of(recipe, layers), norms, stays)
    convolutions = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convolutions & set(made.layers) & set(made.outputs)) == CONVOLUTIONS[name]
    assert list(made.float_joins) == FLOAT_JOINS.get(name, [])
    assert made.without_quantizer == {}
