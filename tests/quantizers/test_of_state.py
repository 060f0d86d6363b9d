"""Places of state_dicts: told by names, and refused where the model has another."""

import copy

import pytest
import torch
from torch import nn

import qtool
from qtool.errors import ModelError
from qtool.quantizers.places.of_state import place_of
from tests.quantizers import test_door as door


def prepared(place: str) -> nn.Module:
    section = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": place}}
    return qtool.prepare(door.net(), section, door.IMAGES)


@pytest.mark.parametrize("place", ["layer_inputs", "relu_outputs", "every_value"])
def test_names_tell_the_place(place: str) -> None:
    assert place_of(prepared(place).state_dict()) == place


def test_sites_tell_of_every_value_also_beside_quantizers_of_layers() -> None:
    assert place_of(["sites.input0.scale"]) == "every_value"
    assert place_of(["a.input_quantizer.scale", "b.0.sites.add0.scale"]) == "every_value"
    assert place_of(["sites.weight", "websites.add0.scale", "conv.weight"]) is None


@pytest.mark.parametrize(
    ("own", "given"),
    [
        ("layer_inputs", "every_value"),
        ("every_value", "layer_inputs"),
        ("every_value", "relu_outputs"),
    ],
)
@pytest.mark.parametrize("kept_by", ["prepare", "deepcopy", "a model around it"])
def test_a_state_of_another_place_is_refused_with_the_place_to_say(
    own: str, given: str, kept_by: str
) -> None:
    model: nn.Module = prepared(own)
    state = prepared(given).state_dict()
    if kept_by == "deepcopy":
        model = copy.deepcopy(model)
    if kept_by == "a model around it":
        model = nn.Sequential(model)
        state = {f"0.{name}": tensor for name, tensor in state.items()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    why = (
        rf"made with place: {given}, and the model was prepared with place: {own}; "
        rf"prepare the model with quantization\.activations\.place: {given}"
    )
    with pytest.raises(ModelError, match=why):
        model.load_state_dict(state, strict=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_weights_alone_and_states_of_the_same_place_are_loaded() -> None:
    model, other = prepared("relu_outputs"), prepared("relu_outputs")
    with torch.no_grad():
        other.get_parameter("0.weight").add_(1)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.get_parameter("0.weight"), other.get_parameter("0.weight"))
    model.load_state_dict(door.net().state_dict(), strict=False)
