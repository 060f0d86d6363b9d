"""Blocks that give a layer's weight to F.linear are made to call the layer."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.graph.by_function import (
    call_layers,
    called_layers,
    find_used_by_function,
    layers_called_so,
)

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Uses its layers as `how` says."""

    def __init__(self, how: str = "weight and bias") -> None:
        super().__init__()
        self.how, self.layer, self.bare = how, nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.own = nn.Linear(4, 4)
        with torch.no_grad():
            self.layer.bias[1] = 0

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.layer.weight, self.layer.bias
        if self.how == "part of the bias at zero":
            bias = bias.clone()
            bias[1].zero_()
        elif self.how == "another bias":
            bias = bias * 2
        elif self.how == "another weight":
            weight = weight * 1
        elif self.how == "called, too":
            x = self.layer(x)
        elif self.how == "by keyword":
            return F.linear(input=x, weight=weight, bias=bias)
        return F.linear(self.own(F.linear(x, weight, bias)), self.bare.weight)


def _found(model: nn.Module) -> dict[str, list[str]]:
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return find_used_by_function(model, layers, [lambda: model(X)])


CASES = {
    "weight and bias": ["layer", "bare"],
    "part of the bias at zero": ["layer", "bare"],
    "by keyword": ["layer"],
    "another bias": ["bare"],
    "another weight": ["bare"],
    "called, too": ["bare"],
}


@pytest.mark.parametrize("how", CASES)
def test_layers_used_by_function_alone_are_found_and_called(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(how))
    found = _found(model)
    assert found == {"0": CASES[how]}
    expected, calls = model(X), []
    call_layers(model, found)
    assert called_layers(model) == found
    called = layers_called_so(model)
    assert {name for name, m in model[0].named_children() if m in called} == set(CASES[how])
    for name, layer in model[0].named_children():
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    torch.testing.assert_close(model(X), expected, rtol=1e-6, atol=1e-6)
    assert set(CASES[how]) <= set(calls)


def test_a_part_of_the_bias_that_is_held_at_zero_does_not_train() -> None:
    torch.manual_seed(0)
    plain = Block("part of the bias at zero")
    made = copy.deepcopy(plain)
    call_layers(made, {"": ["layer", "bare"]})
    for model in (plain, made):
        model(X).square().sum().backward()
    assert plain.layer.bias.grad is not None
    assert float(plain.layer.bias.grad[1]) == 0
    for one, other in zip(plain.parameters(), made.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-6)


def test_what_two_blocks_use_or_none_is_not_found() -> None:
    inner = Block()
    outer = nn.Module()
    outer.forward = lambda x: F.linear(inner(x), inner.layer.weight, inner.layer.bias)
    outer.inner = inner
    assert _found(outer) == {"inner": ["bare"]}
    failing = nn.Sequential(Block(), nn.Linear(9, 9))
    assert _found(failing) == {"0": ["layer", "bare"]}


def test_copies_pickles_and_compiled_models_call_layers_still() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block())
    call_layers(model, {"0": ["layer", "bare"]})
    expected = model(X)
    compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=True)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), compiled):
        assert torch.equal(twin(X), expected)
    exported = torch.export.export(model, (X,)).module()
    torch.testing.assert_close(exported(X), expected)
    assert called_layers(pickle.loads(pickle.dumps(model))) == {"0": ["layer", "bare"]}


def test_a_class_that_takes_no_subclass_stays_as_it_is() -> None:
    class Last(Block):
        def __init_subclass__(cls) -> None:
            raise TypeError("this is the last one")

    model = nn.Sequential(Last())
    call_layers(model, _found(model))
    assert called_layers(model) == {}
    assert type(model[0]) is Last
