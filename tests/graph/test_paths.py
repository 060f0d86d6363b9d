"""What is another path of a block, and what is none: skips, dropout, and containers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from qtool.errors import ModelError
from qtool.graph.inputs import Inputs
from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.frames import install
from qtool.graph.sites.value_tape import record_values

X = torch.linspace(-2, 3, 8).reshape(2, 4)


class Counter(nn.Module):
    """Counts how often its call is made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def at(
        self,
        function: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        self.calls += 1
        return function(*args, **kwargs)


def everywhere(model: nn.Module, *inputs: object) -> dict[str, Counter]:
    """Put a counter at every call that a pass in evaluation mode makes."""
    training = model.training
    graph = record_values(model.eval(), Inputs(inputs))
    model.train(training)
    sites = {o.site: Counter() for o in graph.operations if o.function != "other"}
    install(model, sites, graph.counts)
    return {str(site): stand for site, stand in sites.items()}


class Chain(nn.Module):
    """Calls whose number, and by whom, is set by attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu, self.early = nn.Linear(4, 4), nn.ReLU(), nn.ReLU()
        self.leaf = self.own = self.body = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.body:
            return x
        if self.leaf:
            x = self.early(x)
        x = self.linear(x)
        if self.own:
            x = x + 1
        return F.relu(self.relu(x) - 0.5)


@pytest.mark.parametrize(
    ("skipped", "training", "refused"),
    [
        ("body", False, False),
        ("body", True, False),
        ("leaf", True, False),
        ("leaf", False, False),
        ("own", True, False),
        ("own", False, True),
    ],
)
def test_what_is_skipped(skipped: str, training: bool, refused: bool) -> None:
    model = nn.Sequential(Chain()).train(training)
    sites = everywhere(model, X)
    setattr(model[0], skipped, False)
    if refused:
        with pytest.raises(ModelError, match=r"^0 takes another path .* add 0 times, not 1"):
            model(X)
        return
    model(X)
    # those behind what was skipped are met at their sites all the same
    expected = 0 if skipped == "body" else 1
    assert sites["0:relu1"].calls == sites["0:relu2"].calls == expected
    assert sites["0:relu0"].calls == int(skipped == "own")


def test_a_call_too_many_of_a_leaf_is_refused() -> None:
    class Often(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.times = nn.ReLU(), 1

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times):
                x = self.relu(x)
            return x

    model = nn.Sequential(Often())
    everywhere(model, X)
    model[0].times = 2
    with pytest.raises(ModelError, match=r"^0 takes .* called relu of 0.relu 2 times, not 1"):
        model(X)
    assert torch._C._len_torch_function_stack() == 0
    model[0].times = 1
    assert torch.equal(model(X), F.relu(X))


class Drops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gate = nn.Linear(4, 4), nn.Linear(4, 4)
        self.drop, self.depth = nn.Dropout(0.5), StochasticDepth(0.5, "row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.depth(self.drop(self.linear(x)))
        return F.relu(x * self.gate(x).sigmoid())


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Drops() for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if not self.training or torch.rand(()) > 0.5:
                x = block(x)
        return F.relu(x)


def test_dropout_depth_and_blocks_skipped_at_random_are_no_other_path() -> None:
    torch.manual_seed(0)
    model = Skips().train()
    plain = Skips().train()
    plain.load_state_dict(model.state_dict())
    sites = everywhere(model, X)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = plain(X)
        torch.manual_seed(seed)
        assert torch.equal(model(X), expected)
    # StochasticDepth multiplies, too, which is no product of the block's
    calls = [sites[f"blocks.{i}:mul0"].calls for i in range(4)]
    assert [sites[f"blocks.{i}:sigmoid0"].calls for i in range(4)] == calls
    assert 0 < min(calls) <= max(calls) < 20
    assert sites[":relu0"].calls == 20


class Features(nn.ModuleDict):
    """A container that runs what it holds, as densenet's does."""

    def forward(self, x: Tensor) -> Tensor:
        kept = [x]
        for name, layer in self.items():
            assert name != "sites"
            kept.append(layer(torch.cat(kept, 1)))
        assert list(self) == ["one", "two"]
        assert len(self) == len(list(self.values())) == len(list(self.keys()))
        return F.relu(torch.cat(kept, 1))


class Listed(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        assert len(self) == 2
        assert self[-1] is list(self)[1]
        for layer in self:
            x = layer(x)
        return F.relu(x)


class Children(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return F.relu(x - 0.1)


class Slices(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        assert len(self) == 2
        for layer in (*self[:1], self[-1]):
            x = layer(x)
        return F.relu(x)


CONTAINERS = {
    "dict": lambda: Features({"one": nn.Linear(4, 2), "two": nn.Linear(6, 2)}),
    "list": lambda: Listed([nn.Linear(4, 4), nn.Linear(4, 4)]),
    "children": Children,
    "slices": lambda: Slices(nn.Linear(4, 4), nn.Linear(4, 4)),
    "sequential": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
    "leaf": lambda: nn.Linear(4, 4),
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_run_what_they_hold_and_no_sites(name: str, inside: bool) -> None:
    torch.manual_seed(0)
    model = CONTAINERS[name]()
    if inside:
        model = nn.Sequential(model)
    expected = model(X)
    sites = everywhere(model, X)
    assert torch.equal(model(X), expected)
    assert sites
    assert {stand.calls for stand in sites.values()} == {1}


@pytest.mark.parametrize("name", ["dict", "list", "children"])
def test_containers_compile_as_a_whole(name: str) -> None:
    model = nn.Sequential(CONTAINERS[name]())
    expected = model(X)
    everywhere(model, X)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(X), expected)


def test_one_module_at_two_places_is_told_apart_by_the_block_that_runs_it() -> None:
    act = nn.ReLU()

    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.act = nn.Linear(4, 4), act

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.linear(x)) + F.relu(x)

    model = nn.Sequential(Uses(), Uses(), act)
    expected = model(X)
    sites = everywhere(model, X)
    assert torch.equal(model(X), expected)
    relus = {name: stand.calls for name, stand in sites.items() if "relu" in name}
    assert relus == dict.fromkeys(("0:relu0", "0:relu1", "1:relu0", "1:relu1", ":relu0"), 1)


def test_a_block_called_twice_meets_the_same_sites_twice() -> None:
    block = Children()
    model = nn.Sequential(block, nn.Identity(), block)
    sites = everywhere(model, X)
    model(X)
    assert {str(s): stand.calls for s, stand in sites.items()} == {
        "0:linear0": 2,
        "0:relu0": 2,
        "0:relu1": 2,
        "0:sub0": 2,
    }


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, more: dict[str, Tensor], mask: Tensor) -> Tensor:
        return self.linear(x) + more["shift"] * mask


def test_inputs_are_numbered_in_the_order_of_the_signature() -> None:
    torch.manual_seed(0)
    model, shift, mask = Two(), torch.randn(4), torch.randn(4)
    stands = [Counter() for _ in range(3)]
    seen: list[Tensor] = []

    class Shown(Counter):
        def at(self, function, args, kwargs):
            seen.append(args[0])
            return function(*args, **kwargs) * 2

    install(model, {CallSite("", "input", i): Shown() for i in range(len(stands))}, {})
    output = model(mask=mask, more={"shift": shift}, x=X)
    assert all(a is b for a, b in zip(seen, (X, shift, mask), strict=True))
    assert torch.equal(output, model.linear(2 * X) + 4 * shift * mask)
    graph = record_values(Two(), Inputs((), {"mask": mask, "x": X, "more": {"shift": shift}}))
    linear = next(o for o in graph.operations if o.function == "linear")
    assert linear.reads == graph.inputs[:1]


class Functions(nn.Module):
    """Calls of what torch.compile may look into, to see other functions there."""

    def __init__(self) -> None:
        super().__init__()
        self.swish, self.sigmoid = nn.Hardswish(), nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = self.sigmoid(self.swish(x))
        for act in (F.silu, F.mish, F.relu, F.relu6, F.hardtanh):
            x = act(act(x), inplace=True)
        x = F.gelu(F.elu(F.leaky_relu(F.softmax(F.dropout(x, 0.5, self.training), 1))))
        x = F.interpolate(x, scale_factor=2.0)
        x = F.avg_pool2d(F.max_pool2d(x, 2), 2) + F.adaptive_avg_pool2d(x, 1)
        x = F.layer_norm(F.group_norm(F.batch_norm(x, None, None, training=True), 2), x.shape[3:])
        return F.linear(torch.cat([x.clamp(0, 1), x * x], 1).mean((2, 3)), torch.ones(2, 8))


def test_compiled_functions_are_those_of_the_plain_pass() -> None:
    model = Functions().eval()
    x = torch.randn(2, 4, 4, 4)
    expected = model(x)
    sites = everywhere(model, x)
    assert len(sites) > 20
    assert torch.equal(model(x), expected)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)
    assert {name: stand.calls for name, stand in sites.items()} == dict.fromkeys(sites, 2)


def test_what_a_compiler_hides_is_refused_not_passed_over() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.hardswish(F.relu(x))

    model = Hidden().train()
    everywhere(model, X)
    model(X)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="Hidden takes another path"):
        compiled(X)
