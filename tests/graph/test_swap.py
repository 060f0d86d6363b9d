"""Parts in the place of others, wherever they stand."""

import pytest
from torch import nn

from qtool.graph.swap import replace_module


class Listed(nn.Module):
    """Keeps a part under its name, in plain containers, and as an attribute of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.ReLU()
        self.also = self.part
        self._steps = [self.part, "part", [self.part]]
        self.by_name = {"part": self.part, "pair": (self.part, 3)}
        self._steps.append(self._steps)


@pytest.mark.parametrize("name", ["part", "also"])
def test_a_part_is_replaced_at_every_name_and_in_every_plain_container(name: str) -> None:
    model, new = Listed(), nn.Tanh()
    assert replace_module(model, name, new) is model
    assert model.part is new
    assert model.also is new
    assert model._steps[:3] == [new, "part", [new]]
    assert model._steps[3] is model._steps
    assert model.by_name == {"part": new, "pair": (new, 3)}
    assert list(model._modules) == ["part", "also"]


def test_a_block_that_is_registered_twice_has_its_parts_replaced_in_both_places() -> None:
    block = nn.Sequential(nn.ReLU())
    model, new = nn.Sequential(block, nn.Identity(), block), nn.Tanh()
    replace_module(model, "2.0", new)
    assert model[0][0] is new
    assert model[2][0] is new
    assert len(model) == 3


def test_a_model_that_is_replaced_itself_is_returned() -> None:
    model, new = nn.Linear(2, 2), nn.Tanh()
    assert replace_module(model, "", new) is new


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError):
        replace_module(nn.Sequential(nn.ReLU()), "1", nn.Tanh())
