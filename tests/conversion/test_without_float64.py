"""Conversion where the model's device has no float64, as Apple's have none."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import qtool
from qtool.conversion import biases, to_integer
from qtool.graph.inputs import has_float64
from tests.kit import float_net

SECTION = {
    "weights": {"bits": 4, "range": "absmax"},
    "activations": {"bits": 4, "place": "layer_inputs"},
}


def test_only_apple_s_devices_are_without() -> None:
    names = ["cpu", "cuda", "cuda:1", "meta", "mps"]
    assert [name for name in names if not has_float64(torch.device(name))] == ["mps"]
    assert has_float64(None)


def test_what_needs_it_happens_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(4, 3, 8, 8)
    model = qtool.prepare(float_net(), SECTION, images)
    expected = qtool.convert(model)(images)
    rounded = deepcopy(model)
    qtool.round_biases(rounded)
    went: list[nn.Module] = []
    back: list[tuple[object, ...]] = []
    to, cpu = nn.Module.to, nn.Module.cpu

    def to_cpu(module: nn.Module) -> nn.Module:
        went.append(module)
        return cpu(module)

    def to_device(module: nn.Module, where: torch.device) -> nn.Module:
        back.append((module, where))
        return to(module, where)

    for room in (to_integer, biases):
        monkeypatch.setattr(room, "has_float64", lambda device: False)
    monkeypatch.setattr(nn.Module, "cpu", to_cpu)
    assert torch.equal(qtool.convert(model)(images), expected)
    assert went
    assert model not in went  # a copy did: the model stays where it is
    monkeypatch.setattr(nn.Module, "to", to_device)
    qtool.round_biases(model)
    assert went[-1] is model
    assert back[-1] == (model, torch.device("cpu"))  # where it came from
    for name, value in model.state_dict().items():
        assert torch.equal(value, rounded.state_dict()[name]), name


def test_the_example_that_was_recorded_is_taken_where_the_model_is_now() -> None:
    model = qtool.prepare(float_net(), SECTION, torch.randn(4, 3, 8, 8)).to("meta")
    (inputs,) = to_integer._batches_of_proof(model, None)
    assert [tensor.device.type for tensor in inputs.tensors] == ["meta"]
