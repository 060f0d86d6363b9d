"""Small networks, each with one peculiarity, and what a recording of one pass says of them."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.graph.calls import CountsCalls, restart_calls
from qtool.graph.module_sites import Site
from qtool.graph.recorder import Watched, record_first_forward, record_forward
from qtool.graph.recording import FunctionCall, ModuleCall, Recording
from qtool.graph.swap import Kept, keep_state, kept_state, replace_module

WATCHED = Watched(layers=(nn.Conv2d, nn.Linear), relus=(nn.ReLU,), exactly=True)
X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


@dataclass
class Flour(Kept):
    maker, model = "a mill", "flour"
    sacks: int


class Bread(Kept):
    maker, model = "an oven", "bread"


class Net(nn.Module):
    """Parts that `flow` connects."""

    def __init__(self, flow: Callable[..., object]) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.relu = nn.BatchNorm2d(3), nn.ReLU()
        self.relu_in_place, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.linear = nn.Linear(3, 3)
        self.flow = flow

    def forward(self, *inputs: Tensor, **named: Tensor) -> object:
        return self.flow(self, *inputs, **named)


def recorded(flow: Callable[..., object], *inputs: Tensor) -> Recording:
    return record_forward(Net(flow).eval(), WATCHED, *(inputs or (X,)))


def story(recording: Recording) -> list[str]:
    """Return the calls beside and of modules in order, as `maker(what it read)`."""
    said = {value: f"x{number}" for number, value in enumerate(recording.inputs)}
    found = []
    for call in recording.calls_in_order:
        if isinstance(call, FunctionCall) and call.inside is not None:
            continue
        name = str(call.site) if isinstance(call, ModuleCall) else getattr(call, "name", "")
        read = ", ".join(said.get(value, "?") for value in call.read)
        said |= dict.fromkeys(call.made, name)
        found.append(f"{name}({read})")
    return [*found, f"return {', '.join(said.get(value, '?') for value in recording.outputs)}"]


def test_a_site_is_written_as_name_and_call() -> None:
    assert str(Site("layer1.0.relu", 1)) == "layer1.0.relu:1"
    assert Site("relu", 0) == ("relu", 0)


def test_a_straight_line_is_told_in_order() -> None:
    told = recorded(lambda net, x: net.relu(net.norm(net.conv(x))))
    assert story(told) == ["conv:0(x0)", "norm:0(conv:0)", "relu:0(norm:0)", "return relu:0"]
    assert told.batch_norms == {"conv": "norm"}
    assert told.bypassed == set()


def test_a_module_registered_twice_has_its_first_name() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    net.append(net[0])
    told = record_forward(net, WATCHED, X)
    assert story(told) == ["0:0(x0)", "1:0(0:0)", "0:1(1:0)", "return 0:1"]
    assert told.calls == {"0": 2}
    assert list(told.weights) == ["0"]


@pytest.mark.parametrize("module", [nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3).eval()])
def test_the_model_itself_may_be_what_is_watched(module: nn.Module) -> None:
    told = record_forward(module, WATCHED, X)
    assert story(told) == [":0(x0)", "return :0"]
    assert not [*module._forward_hooks, *module._forward_pre_hooks]


def test_what_a_users_hook_computes_is_no_part_of_the_module() -> None:
    conv = nn.Conv2d(3, 3, 1)
    conv.register_forward_pre_hook(lambda module, args: (args[0].clamp(max=1),))
    conv.register_forward_hook(lambda module, args, output: output.flatten(1))
    assert record_forward(conv, WATCHED, X).calls == {"": 1}
    net = nn.Sequential(conv, nn.Flatten())
    told = story(record_forward(net, WATCHED, X))
    assert told[:3] == ["clamp(x0)", "0:0(clamp)", "flatten(0:0)"]


def test_each_call_of_a_relu_is_a_site_of_its_own() -> None:
    told = recorded(lambda net, x: net.other(net.relu(net.conv(net.relu(x)))))
    assert told.calls_of("relu") == {"relu": 2}
    assert told.places(through=()) == {"conv": ("relu", 0), "other": ("relu", 1)}


def test_a_shared_convolution_has_no_place_and_no_batch_norm_of_its_own() -> None:
    told = recorded(lambda net, x: net.norm(net.conv(net.relu(net.conv(net.relu(x))))))
    assert told.calls == {"conv": 2}
    assert told.places(through=()) == {}
    assert told.batch_norms == {}
    assert told.feeds == {"conv": {"conv"}}


def test_what_a_function_keeps_on_the_grid_is_still_the_relus() -> None:
    told = recorded(lambda net, x: net.linear(net.pool(net.relu(x)).mean((2, 3))))
    assert story(told)[:3] == ["relu:0(x0)", "max_pool2d(relu:0)", "mean(max_pool2d)"]
    assert told.places(through=("max_pool2d",)) == {}
    assert told.places(through=("max_pool2d", "mean")) == {"linear": ("relu", 0)}


def add_in_place(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    y += net.other(x)
    return net.relu_in_place(y)


def add_as_a_statement(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    y.add_(x)
    return net.norm(y)


def functions_in_place(net: Net, x: Tensor) -> Tensor:
    y = F.relu(net.conv(x), inplace=True)
    return torch.relu_(y.mul_(2))


def test_a_change_in_place_makes_a_new_value_in_the_old_tensor() -> None:
    assert story(recorded(add_in_place)) == [
        "conv:0(x0)",
        "other:0(x0)",
        "add_(conv:0, other:0)",
        "relu_in_place:0(add_)",
        "return relu_in_place:0",
    ]
    told = recorded(add_as_a_statement)
    assert story(told) == ["conv:0(x0)", "add_(conv:0, x0)", "norm:0(add_)", "return norm:0"]
    assert told.batch_norms == {}
    assert story(recorded(functions_in_place)) == [
        "conv:0(x0)",
        "relu(conv:0)",
        "mul_(relu)",
        "relu_(mul_)",
        "return relu_",
    ]


def test_a_part_that_is_set_is_a_reader_which_makes_a_new_value() -> None:
    def flow(net: Net, x: Tensor) -> Tensor:
        y = net.conv(x)
        y[:, 0] = 0
        return net.norm(y)

    told = recorded(flow)
    setting = told.function_calls[1]
    assert (setting.name, len(setting.made)) == ("__setitem__", 1)
    assert story(told) == [
        "conv:0(x0)",
        "__setitem__(conv:0)",
        "norm:0(__setitem__)",
        "return norm:0",
    ]
    assert told.readers[told.module_calls[0].made[0]][0] is setting
    assert told.batch_norms == {}


def test_a_forward_that_calls_functions_is_seen_as_well_as_one_of_modules() -> None:
    told = recorded(lambda net, x: net.other(F.relu(net.conv(x) + x)))
    assert story(told)[:3] == ["conv:0(x0)", "add(conv:0, x0)", "relu(add)"]
    assert story(told)[3:] == ["other:0(relu)", "return other:0"]
    assert told.places(through=()) == {}
    assert told.feeds == {"conv": {"other"}}


def test_a_value_knows_its_maker_and_its_readers() -> None:
    told = recorded(lambda net, x: net.conv(y := net.relu(x)) + y)
    conv, (relu,) = told.module_calls[1], told.module_calls[:1]
    value = relu.made[0]
    assert told.producers[value] is relu
    assert [getattr(call, "name", "") for call in told.readers[value]] == ["", "add"]
    assert told.readers[value][0] is conv
    assert told.inputs[0] not in told.producers


def test_every_input_is_known_by_place_and_by_name() -> None:
    def flow(net: Net, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"sum": net.conv(left) + net.other(right), "left": left}

    told = recorded(flow, X, 2 * X)
    assert story(told) == ["conv:0(x0)", "other:0(x1)", "add(conv:0, other:0)", "return add, x0"]
    assert told.example is not None
    assert torch.equal(told.example.tensors[0], X)

    found: list[Recording] = []
    net = Net(flow)
    record_first_forward(net, WATCHED, lambda model, recording: found.append(recording))
    net(X, right=2 * X)
    assert story(found[0]) == story(told)


def test_what_happens_inside_a_watched_module_is_read_but_makes_nothing() -> None:
    told = recorded(lambda net, x: net.conv(x))
    inside = [call for call in told.function_calls if call.inside is not None]
    assert [call.inside for call in inside] == [("conv", 0)] * len(inside)
    assert {v for call in inside for v in call.read} == {told.inputs[0], told.weights["conv"]}
    assert not any(call.made for call in inside)
    assert told.readers[told.inputs[0]] == told.module_calls


def test_asking_for_a_shape_is_no_call() -> None:
    told = recorded(lambda net, x: net.conv(x) * x.shape[0] * x.dim() * x.size(0))
    assert [call.name for call in told.function_calls if call.inside is None] == ["mul"] * 3


def test_a_weight_that_is_used_without_its_layer_is_bypassed() -> None:
    told = recorded(lambda net, x: F.conv2d(x, net.conv.weight) + net.other(x))
    assert told.bypassed == {"conv"}
    assert told.calls == {"other": 1}


def test_layers_that_share_a_parameter_share_its_value() -> None:
    net = Net(lambda net, x: net.conv(x))
    net.other.weight = net.conv.weight
    told = record_forward(net, WATCHED, X)
    assert told.weights["conv"] == told.weights["other"]
    assert told.bypassed == {"other"}


class Scaled(nn.Conv2d):
    """A subclass."""


def test_subclasses_are_watched_unless_the_type_is_to_be_exact() -> None:
    net = nn.Sequential(Scaled(3, 3, 1))
    loose = Watched(layers=(nn.Conv2d,), relus=())
    assert record_forward(net, WATCHED, X).calls == {}
    assert record_forward(net, loose, X).calls == {"0": 1}


def test_a_pass_that_fails_is_not_recorded_and_leaves_no_hooks() -> None:
    net = Net(lambda net, x: net.conv(x))
    with pytest.raises(RuntimeError, match="channels"):
        record_forward(net, WATCHED, X[:, :2])
    assert not any([*m._forward_hooks, *m._forward_pre_hooks] for m in net.modules())
    assert record_forward(net, WATCHED, X).calls == {"conv": 1}


def test_a_call_that_fails_and_is_caught_is_no_call() -> None:
    def flow(net: Net, x: Tensor) -> Tensor:
        try:
            y = net.conv(x[:, :2])
        except RuntimeError:
            y = net.conv(x)
        return y.relu()

    told = recorded(flow)
    assert story(told) == ["__getitem__(x0)", "conv:0(x0)", "relu(conv:0)", "return relu"]


def test_a_model_that_returns_nothing_cannot_be_recorded() -> None:
    with pytest.raises(ValueError, match="returned nothing"):
        recorded(lambda net, x: None)


class Counter(CountsCalls):
    """Returns the number of the call."""

    def forward(self, x: Tensor) -> int:
        return self.next_call()


def test_calls_are_counted_anew_where_a_pass_begins() -> None:
    net = nn.ModuleList([Counter(), Counter()])
    assert [net[0](X), net[0](X), net[1](X)] == [0, 1, 0]
    restart_calls(net)
    assert [net[0](X), net[1](X)] == [0, 0]


def test_a_module_is_replaced_wherever_it_stands() -> None:
    shared = nn.ReLU()
    net = nn.Sequential(shared, nn.Sequential(shared, nn.Identity()))
    new = nn.Identity()
    replace_module(net, "1.0", new)
    assert net[0] is new
    assert net.get_submodule("1.0") is new
    assert len(net) == 2


def test_what_is_kept_on_a_model_is_found_by_its_type_only() -> None:
    net = nn.Identity()
    keep_state(net, Flour(3))
    assert kept_state(net, Flour) == Flour(3)
    with pytest.raises(ValueError, match="did not come from an oven: it is flour, from a mill"):
        kept_state(net, Bread)
    with pytest.raises(ValueError, match="did not come from a mill: it is a float model"):
        kept_state(nn.Identity(), Flour)
