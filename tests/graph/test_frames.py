"""Modules at numbered calls of blocks: they do the work of their calls, wherever the model runs."""

import pickle
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.errors import ModelError
from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.frames import call_sites_of, install, sites_of, uninstall


class Scaled(nn.Module):
    """Multiplies what a call returns by a power of two, so that which calls did is seen."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def at(
        self,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        result = function(*args, **kwargs)
        assert isinstance(result, Tensor)
        return F.relu(result) * self.factor - F.relu(-result) * self.factor


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.relu(self.linear(x))
        return F.relu(self.relu(x - 0.5) + x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.body(x)))


RELU = "body.0.relu"
SITES = {
    CallSite("", "input", 0): 2.0,
    CallSite("", "relu", 0): 4.0,
    CallSite("body.0", "add", 1, call=1): 8.0,
    CallSite("body.0", "relu", 1, leaf=RELU, call=1): 16.0,
    CallSite("body.0", "relu", 2): 32.0,
    CallSite("body.1", "linear", 0, leaf="body.1.linear"): 64.0,
}


def block_counts(name: str) -> dict[tuple[str, str], int]:
    leaf = {(f"{name}.relu", "relu"): 2, (f"{name}.linear", "linear"): 1}
    return leaf | {("", "add"): 2, ("", "relu"): 1}


COUNTS = {
    "": ({("", "relu"): 1, ("head", "linear"): 1},),
    "body.0": (block_counts("body.0"),),
    "body.1": (block_counts("body.1"),),
}


def by_hand(model: Net, x: Tensor) -> Tensor:
    """What the model computes, with the factors of its sites."""
    first, second = model.body
    x = x * 2
    y = x + F.relu(first.linear(x))
    z = F.relu(y - 0.5) * 16
    y = F.relu((z + y) * 8) * 32
    y = y + F.relu(second.linear(y) * 64)
    y = F.relu(F.relu(y - 0.5) + y)
    return model.head(F.relu(y) * 4)


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    made = Net()
    install(made, {site: Scaled(factor) for site, factor in SITES.items()}, COUNTS)
    return made


def test_what_stands_at_a_call_does_its_work(model: Net) -> None:
    x = torch.randn(3, 4)
    expected = by_hand(model, x)
    assert torch.equal(model(x), expected)
    assert torch.equal(model.forward(x), expected)
    assert isinstance(model.body[0], Block)
    assert type(model.body[0]).__name__ == "Block"


def test_state_names_say_where_it_stands(model: Net) -> None:
    names = set(model.state_dict()) - set(Net().state_dict())
    assert "body.0.sites.relu1.factor" in names
    assert "sites.input0.factor" in names
    assert len(names) == len(SITES)
    assert set(sites_of(model)) == set(call_sites_of(model)) == {str(site) for site in SITES}
    assert sites_of(model)["body.0:add1"] is model.body[0].sites["add1"]


def test_a_block_alone_does_what_it_does_inside(model: Net) -> None:
    x = torch.randn(3, 4)
    seen: list[Tensor] = []
    model.body.register_forward_hook(lambda m, args, out: seen.extend([args[0], out]))
    model(x)
    assert torch.equal(model.body(seen[0]), seen[1])


@pytest.mark.parametrize("copied", [deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_sites_of_their_own(model: Net, copied: Callable[[Net], Net]) -> None:
    x = torch.randn(3, 4)
    expected = model(x)
    twin = copied(model)
    assert torch.equal(twin(x), expected)
    twin.body[0].sites["add1"].factor.fill_(0.25)
    assert not torch.equal(twin(x), expected)
    assert torch.equal(model(x), expected)


def test_uninstalled_it_is_what_it_was(model: Net) -> None:
    x = torch.randn(3, 4)
    uninstall(model)
    plain = Net()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(x), plain(x))
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert sites_of(model) == {}


class Turns(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.other = False

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.linear(x))
        return F.relu(x) if self.other else x


def test_another_path_is_refused_with_the_name_of_the_block() -> None:
    model = nn.Sequential(Turns())
    counts = {"0": ({("", "relu"): 1, ("0.linear", "linear"): 1},)}
    install(model, {CallSite("0", "relu", 0): Scaled(2.0)}, counts)
    model(torch.randn(2, 4))
    model[0].other = True
    with pytest.raises(ModelError, match=r"^0 takes another path .* called relu 2 times, not 1"):
        model(torch.randn(2, 4))


@pytest.mark.parametrize("part", ["model", "forward", "block"])
def test_compiled_without_breaks(model: Net, part: str) -> None:
    x = torch.randn(3, 4)
    whole = {"model": model, "forward": model.forward, "block": model.body[0]}[part]
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), whole(x))
    assert torch.equal(compiled(x[:2]), whole(x[:2]))


# dynamo calls it a side effect that a mode was entered, and left again
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize("strict", [True, False])
def test_exported_with_a_batch_of_any_size(model: Net, strict: bool) -> None:
    model.eval()
    size = torch.export.Dim("batch")
    shapes = {"x": {0: size}}
    program = torch.export.export(model, (torch.randn(3, 4),), dynamic_shapes=shapes, strict=strict)
    x = torch.randn(5, 4)
    assert torch.equal(program.module()(x), by_hand(model, x))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced(model: Net) -> None:
    traced = torch.jit.trace(model.eval(), torch.randn(3, 4))
    x = torch.randn(5, 4)
    assert torch.equal(traced(x), by_hand(model, x))


class OwnSites(Turns):
    def __init__(self) -> None:
        super().__init__()
        self.sites = [1, 2]


def test_a_block_with_sites_of_its_own_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^0 has an attribute `sites` of its own"):
        install(nn.Sequential(OwnSites()), {CallSite("0", "relu", 0): Scaled(2.0)}, {})


class Final(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def __init_subclass__(cls) -> None:
        raise TypeError("final")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


class Last(type):
    def __new__(mcs, name: str, bases: tuple[type, ...], content: dict[str, object]) -> type:
        if any(isinstance(base, Last) for base in bases):
            raise TypeError("there is nothing below it")
        return super().__new__(mcs, name, bases, content)


class Bottom(Turns, metaclass=Last):
    pass


def test_a_class_without_subclasses_is_refused() -> None:
    model = nn.Sequential(Bottom())
    with pytest.raises(ModelError, match=r"no subclass can be made of Bottom \(there is nothing"):
        install(model, {CallSite("0", "relu", 0): Scaled(2.0)}, {})


def test_a_class_that_hears_of_subclasses_hears_nothing() -> None:
    model = nn.Sequential(Final())
    counts = {"0": ({("", "relu"): 1},)}
    x = torch.randn(2, 4)
    expected = model(x) * 2
    install(model, {CallSite("0", "relu", 0): Scaled(2.0)}, counts)
    assert torch.equal(model(x), expected)
