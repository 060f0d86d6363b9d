"""A pass that is run again from a layer on gives what a whole pass gives."""

import pytest
import torch
from torch import Tensor, nn

from qtool.graph.replayed import Replay
from qtool.models.vision import build_model


class InPlace(nn.Module):
    """A block that writes to what its layers give, and calls one ReLU several times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.relu(self.conv1(x))
        y = self.conv2(y)
        y += x
        return self.relu(y)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(InPlace(), InPlace(), nn.Flatten(), nn.Linear(192, 4)).eval()


@pytest.mark.parametrize("since", ["0.conv1", "0.conv2", "1.conv1", "1.conv2", "3"])
def test_a_pass_from_a_layer_on_is_a_whole_one(since: str) -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    replay = Replay(model)
    before = replay.record(x)
    assert isinstance(before, Tensor)
    assert replay.is_exact(x, since=[since])
    layer = model.get_submodule(since)
    with torch.no_grad():
        layer.get_parameter("weight").mul_(0.5)
        expected = model(x)
    assert not torch.equal(expected, before)
    again = replay.run(x, since=[since])
    assert isinstance(again, Tensor)
    assert torch.equal(again, expected)
    assert torch.equal(model(x), expected), "the model is left as it was"


def test_what_ended_before_a_layer_is_not_computed_again() -> None:
    model, x = net(), torch.randn(2, 3, 8, 8)
    replay = Replay(model)
    replay.record(x)
    replay.run(x, since=["1.conv2"])
    assert (model[0].calls, model[1].calls) == (1, 2)
    replay.run(x, since=["3"])
    assert (model[0].calls, model[1].calls) == (1, 2)
    replay.run(x, since=["3", "0.conv2"])
    assert (model[0].calls, model[1].calls) == (2, 3)
    replay.run(x, since=["no such layer"])
    assert (model[0].calls, model[1].calls) == (3, 4)


def test_a_model_whose_code_remembers_is_not_replayed() -> None:
    class Remembers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.total = nn.Linear(3, 3), nn.Linear(3, 3), 0.0

        def forward(self, x: Tensor) -> Tensor:
            self.total += 1.0
            return self.second(self.first(x)) + self.total

    model, x = Remembers().eval(), torch.randn(2, 3)
    replay = Replay(model)
    replay.record(x)
    assert not replay.is_exact(x, since=["second"])


def test_a_network_of_residual_blocks_is_replayed() -> None:
    model = build_model("resnet20", 10, 3, 32, weights="none").model.eval()
    x = torch.randn(2, 3, 32, 32)
    replay = Replay(model)
    replay.record(x)
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert all(replay.is_exact(x, since=[name]) for name in layers)
