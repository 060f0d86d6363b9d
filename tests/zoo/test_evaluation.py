"""The zoo's evaluation finds faults that are planted in what conversion made or said."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import qtool
from tests.zoo.harness import judge
from tests.zoo.networks import NETWORKS

Spoil = Callable[[nn.Module], object]


def change(name: str, tensor: str, spoil: Spoil) -> Spoil:
    """Return what changes a tensor of a layer in place."""
    return lambda integer: spoil(getattr(integer.get_submodule(name), tensor))


# what is planted -> network, what does it, a part of what has to be found
FAULTS: dict[str, tuple[str, Spoil, str]] = {
    "a code": (
        "vision-residual_blocks",
        change("1.conv1", "codes", lambda codes: codes[0, 0].add_(1)),
        "1.conv1: codes differ in channels",
    ),
    "a scale": (
        "vision-residual_blocks",
        change("1.conv2", "weight_scale", lambda scale: scale.mul_(1.001)),
        "1.conv2: scales",
    ),
    "a bias": (
        "shared-one_convolution_twice",
        change("stem", "bias", lambda bias: bias.add_(2)),
        "stem: bias",
    ),
    "an input scale": (
        "shared-one_convolution_twice",
        change("same", "input_scale", lambda scale: scale.mul_(2)),
        "same: the input's scale",
    ),
    "an output": (
        "inputs-tuple_of_outputs",
        lambda integer: integer.body[1].register_forward_hook(lambda m, args, made: made * 1.5),
        "integer: off by",
    ),
    "a weight that is not named": (
        "functional-OwnKernel",
        lambda integer: integer.qtool.left_float.clear(),
        "'kernel' is used in float",
    ),
    "a layer that is not named": (
        "functional-product_with_a_transposed_weight",
        lambda integer: integer.qtool.left_float.clear(),
        "nothing is said of hidden",
    ),
    "a norm that is not named": (
        "norms-without_statistics",
        lambda integer: (integer.qtool.not_folded.clear(), integer.qtool.notes.clear()),
        "the norm norm1 stays, and nothing says so",
    ),
    "a part of training": (
        "aliased-convolution_registered_twice",
        lambda integer: integer.add_module(
            "left", qtool.prepare(nn.Linear(2, 2), {"weights": {"bits": 4}})
        ),
        "'left' is still a QuantLinear",
    ),
    "a reason of one's own": (
        "attention-multihead_attention",
        lambda integer: integer.qtool.left_float.update({"attend": "it was too hard"}),
        "no known limit: it was too hard",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, spoil, found = FAULTS[fault]
    convert = qtool.convert

    def spoilt(model: nn.Module) -> nn.Module:
        integer = convert(model)
        with torch.no_grad():
            spoil(integer)
        return integer

    assert judge(NETWORKS[network]).outcome == "right"
    monkeypatch.setattr(qtool, "convert", spoilt)
    verdict = judge(NETWORKS[network])
    assert verdict.outcome == "silent"
    assert found in verdict.why


def test_an_error_after_prepare_is_raw(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: nn.Module) -> nn.Module:
        raise ValueError("stem is refused too late")

    monkeypatch.setattr(qtool, "convert", fails)
    verdict = judge(NETWORKS["shared-one_convolution_twice"])
    assert (verdict.outcome, "refused too late" in verdict.why) == ("raw", True)
