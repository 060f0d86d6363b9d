"""The graph of values: what one pass of a model reads and makes, and by whose calls."""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from qtool.graph.inputs import Inputs
from qtool.graph.sites.value_graph import Operation, ValueGraph
from qtool.graph.sites.value_tape import record_values


class _Runs(nn.Module):
    """Runs a function on its children."""

    def __init__(self, function: Callable[..., object], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        return self.function(self, *args, **kwargs)


def _record(model: nn.Module, *tensors: Tensor, training: bool = False) -> ValueGraph:
    return record_values(model.train(training), Inputs(tensors or (torch.randn(2, 4, 8, 8),)))


def _sites(graph: ValueGraph) -> list[str]:
    return [str(operation.site) for operation in graph.operations]


def _of(graph: ValueGraph, site: str) -> Operation:
    return next(operation for operation in graph.operations if str(operation.site) == site)


def _holder(function: Callable[..., object]) -> nn.Module:
    return _Runs(function, conv=nn.Conv2d(4, 4, 3, padding=1), act=nn.ReLU())


def test_an_operation_says_who_made_what_it_reads() -> None:
    graph = _record(_holder(lambda m, x: F.relu(m.conv(x) + x)))
    conv, add, relu = graph.operations
    assert [o.site.leaf for o in graph.operations] == ["conv", "", ""]
    assert conv.reads == graph.inputs
    assert conv.facts == {"weight": "conv.weight"}
    assert add.reads == (*conv.makes, *graph.inputs)
    assert relu.reads == add.makes
    assert relu.makes == graph.outputs
    assert relu.shapes == ((2, 4, 8, 8),)
    assert graph.makers[relu.makes[0]] is relu
    assert graph.readers[graph.inputs[0]] == [conv, add]


def test_a_leaf_called_twice_and_a_function_share_the_numbers_of_a_block() -> None:
    graph = _record(_holder(lambda m, x: m.act(F.relu(m.act(x) - 1))))
    assert _sites(graph) == [":relu0", ":sub0", ":relu1", ":relu2"]
    calls = [(o.site.leaf, o.site.call) for o in graph.operations if o.function == "relu"]
    assert calls == [("act", 0), ("", 0), ("act", 1)]
    assert graph.counts == {"": ({("act", "relu"): 2, ("", "sub"): 1, ("", "relu"): 1},)}


def test_a_block_called_twice_has_the_same_sites_and_counts_once() -> None:
    block = _holder(lambda m, x: m.act(m.conv(x)))
    graph = _record(_Runs(lambda m, x: m.block(m.block(x)) * 2, block=block))
    assert _sites(graph) == ["block:conv2d0", "block:relu0"] * 2 + [":mul0"]
    counts = {("block.conv", "conv2d"): 1, ("block.act", "relu"): 1}
    assert graph.counts == {"block": (counts,), "": ({("", "mul"): 1},)}


def test_a_sequential_is_no_block() -> None:
    inner = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU6()))
    graph = _record(nn.Sequential(inner, nn.AdaptiveAvgPool2d(1)))
    assert _sites(graph) == [":conv2d0", ":batch_norm0", ":clip0", ":avg_pool0"]
    assert [o.site.leaf for o in graph.operations] == ["0.0", "0.1", "0.2.0", "1"]


def _in_place(m: nn.Module, x: Tensor) -> Tensor:
    y = m.get_submodule("conv")(x)
    y += x
    return F.relu_(y)


IN_PLACE = {
    "the result is taken": (_in_place, set()),
    "a statement": (lambda m, x: _statement(m.conv(x), x), {":add0"}),
    "a statement, then in place": (
        lambda m, x: F.relu(_twice_in_place(m.conv(x), x)),
        {":add0", ":mul0"},
    ),
    "a module, and what it was given": (
        lambda m, x: (lambda y: nn.ReLU(inplace=True)(y) + y)(m.conv(x)),
        {":relu0"},
    ),
    "a view of what is written to": (
        lambda m, x: (lambda y: (lambda part: (y.relu_(), part * 2)[1])(y[:, 1:]))(m.conv(x)),
        {":relu0"},
    ),
    "a part": (lambda m, x: _write_a_part(m.conv(x), x), {":relu0"}),
    "its shape alone": (
        lambda m, x: (lambda y: y.relu_().reshape(y.shape[0], -1))(m.conv(x)),
        set(),
    ),
}


def _statement(y: Tensor, x: Tensor) -> Tensor:
    y.add_(x)
    return F.relu(y)


def _twice_in_place(y: Tensor, x: Tensor) -> Tensor:
    z = y.add_(x)
    z *= 2
    return y


def _write_a_part(y: Tensor, x: Tensor) -> Tensor:
    y[:, :2].relu_()
    return y * 2


@pytest.mark.parametrize("case", IN_PLACE)
def test_results_that_are_dropped_are_lost(case: str) -> None:
    function, lost = IN_PLACE[case]
    graph = _record(_holder(function))
    assert {str(o.site) for o in graph.operations if o.lost} == lost
    read = {value for o in graph.operations for value in o.reads}
    assert read <= graph.makers.keys() | set(graph.inputs)


def test_recording_in_place_computes_what_the_model_does() -> None:
    model, seen = _holder(_in_place), []
    model.register_forward_hook(lambda m, args, output: seen.append(output))
    x = torch.randn(2, 4, 8, 8)
    record_values(model.eval(), Inputs((x,)))
    with torch.no_grad():
        model(x)
    assert torch.equal(seen[0], seen[1])


def test_constants_are_no_values() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        gain = m.get_parameter("gain").view(1, -1, 1, 1).exp()
        shift = torch.zeros_like(x)
        shift[:, 1:] = 0.5
        return 3 + x * gain + shift

    model = _holder(forward)
    model.gain = nn.Parameter(torch.zeros(4))
    graph = _record(model)
    assert _sites(graph) == [":mul0", ":add0", ":add1"]
    assert [o.reads for o in graph.operations[:1]] == [graph.inputs]
    assert [o.facts for o in graph.operations] == [
        {"constants": 1},
        {"constants": 1, "value": 3.0},
        {"constants": 1},
    ]
    assert graph.counts[""][0]["", "reshape"] == 1


def test_a_constant_that_a_value_is_written_to_is_a_value() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        made = torch.zeros(2, 4, 8, 8)
        made[:, 1:] = F.relu(x[:, 1:])
        return made * 2

    graph = _record(_holder(forward))
    assert _sites(graph) == [":slice0", ":relu0", ":other0", ":mul0"]
    written = _of(graph, ":other0")
    assert written.facts["name"] == "__setitem__"
    assert _of(graph, ":mul0").reads == written.makes


def test_what_no_function_tells_of_is_an_operation_of_the_module() -> None:
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy() * 2)

    model = _Runs(lambda m, x: m.twice(m.act(x)), twice=_Runs(lambda m, x: Twice.apply(x)))
    model.act = nn.ReLU()
    graph = _record(model)
    relu, twice = graph.operations
    assert twice.function == "other"
    assert (twice.reads, twice.makes) == (relu.makes, graph.outputs)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("module", [nn.Dropout(0.5), StochasticDepth(0.5, "row")])
def test_a_dropout_is_one_call_in_both_modes(module: nn.Module, training: bool) -> None:
    model = _Runs(lambda m, x: x + m.drop(m.act(x)), act=nn.ReLU(), drop=module)
    graph = _record(model, training=training)
    assert _sites(graph) == [":relu0", ":dropout0", ":add0"]
    relu, dropout, add = graph.operations
    assert dropout.reads == relu.makes
    assert add.reads == (*graph.inputs, *dropout.makes)


def test_a_pass_leaves_no_traces() -> None:
    norm = nn.BatchNorm2d(4)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.Dropout())
    assert norm.running_mean is not None
    x, before = torch.randn(2, 4, 8, 8), norm.running_mean.clone()
    random = torch.random.get_rng_state()
    graph = _record(model, x, training=True)
    assert graph.training
    assert torch.equal(norm.running_mean, before)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def _plus_one(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output + 1


def test_hooks_of_others_run_outside_of_their_block() -> None:
    block = _holder(lambda m, x: m.conv(x))
    block.register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    block.register_forward_hook(_plus_one)
    model = _Runs(lambda m, x: m.block(x), block=block)
    model.register_forward_pre_hook(lambda m, args: (args[0] - 1,))
    assert _sites(_record(model)) == [":mul0", "block:conv2d0", ":add0"]


def test_several_inputs_and_a_dict_of_outputs() -> None:
    model = _Runs(lambda m, a, b: {"sum": a + b, "given": a}, act=nn.ReLU())
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    graph = record_values(model, Inputs((a,), {"b": b}))
    assert len(set(graph.inputs)) == 2
    assert graph.outputs == (*graph.operations[0].makes, graph.inputs[0])


def test_a_failed_pass_leaves_the_model_as_it_was() -> None:
    model = _Runs(lambda m, x: x.nothing, act=nn.ReLU())
    with pytest.raises(AttributeError):
        _record(model)
    assert not model._forward_hooks
    assert torch._C._len_torch_function_stack() == 0


POOLINGS = {
    "mean": (lambda x: x.mean([2, 3]), {"kernel": (8, 8), "whole": True, "output": (1, 1)}),
    "adaptive": (
        lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
        {"kernel": (2, 4), "stride": (2, 4), "output": (4, 2)},
    ),
    "the same size": (
        nn.AdaptiveAvgPool2d(8),
        {"kernel": (1, 1), "same": True, "output": (8, 8)},
    ),
    "windows of several sizes": (nn.AdaptiveAvgPool2d(3), {"output": (3, 3)}),
    "windows": (nn.AvgPool2d(2), {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}),
    "by keyword": (
        lambda x: F.avg_pool2d(input=x, kernel_size=(3, 2), stride=1, padding=1),
        {"kernel": (3, 2), "stride": (1, 1), "padding": (1, 1)},
    ),
    "one window": (nn.AvgPool2d(8), {"kernel": (8, 8), "stride": (8, 8)}),
    "without padding": (
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        {"kernel": (3, 3), "divisor": None},
    ),
    "over the border": (nn.AvgPool2d(3, 2, ceil_mode=True), {"divisor": None}),
    "another divisor": (nn.AvgPool2d(2, divisor_override=3), {"divisor": 3}),
}


@pytest.mark.parametrize("case", POOLINGS)
def test_facts_of_average_poolings(case: str) -> None:
    pool, expected = POOLINGS[case]
    graph = _record(_Runs(lambda m, x: pool(x), act=nn.ReLU()))
    facts = _of(graph, ":avg_pool0").facts
    assert {name: facts.get(name) for name in expected} == expected
    assert ("whole" in facts) is ("whole" in expected)
    assert ("divisor" in facts) is ("divisor" in expected)


CLIPS = {
    "relu6": (nn.ReLU6(), (0, 6)),
    "hardtanh": (lambda x: F.hardtanh(x, max_val=2.0), (-1, 2)),
    "clamp": (lambda x: x.clamp(-3, max=4), (-3, 4)),
}


@pytest.mark.parametrize("case", CLIPS)
def test_facts_of_clips(case: str) -> None:
    clip, (low, high) = CLIPS[case]
    graph = _record(_Runs(lambda m, x: clip(x), act=nn.ReLU()))
    assert _of(graph, ":clip0").facts == {"low": low, "high": high}


def test_an_old_hardswish_is_spelled_out() -> None:
    graph = _record(_Runs(lambda m, x: x * F.relu6(x + 3) / 6, act=nn.ReLU()))
    assert _sites(graph) == [":add0", ":clip0", ":mul0", ":div0"]
    assert _of(graph, ":add0").facts == {"value": 3.0, "constants": 1}
    assert _of(graph, ":mul0").facts == {"constants": 0}
    assert _of(graph, ":div0").facts == {"value": 6.0, "constants": 1}


def test_a_channel_shuffle_and_its_halves() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1)
        y = torch.cat((left, m.get_submodule("act")(right)), dim=-3)
        return y.view(2, 2, 2, 8, 8).transpose(1, 2).contiguous().view(2, 4, 8, 8)

    graph = _record(_Runs(forward, act=nn.ReLU()))
    halves, relu, cat = graph.operations[:3]
    assert relu.reads == halves.makes[1:]
    assert cat.reads == (halves.makes[0], *relu.makes)
    assert cat.facts == {"dim": 1, "constants": 0}
    assert [o.function for o in graph.operations[3:]] == [
        "reshape",
        "transpose",
        "contiguous",
        "reshape",
    ]
    chain = graph.operations[2:]
    assert all(b.reads == a.makes for a, b in pairwise(chain))


EXPECTED = {
    "resnet18": {"add": 8, "relu": 17, "avg_pool": 1, "max_pool": 1},
    "mobilenet_v2": {"add": 10, "clip": 35},
    "mobilenet_v3_small": {"mul": 9, "hardswish": 19, "hardsigmoid": 9, "avg_pool": 10, "add": 6},
}
EXPECTED_SLOW = {
    "squeezenet1_1": {"cat": 8, "max_pool": 3},
    "googlenet": {"cat": 9},
    "efficientnet_b0": {"silu": 49, "sigmoid": 16, "mul": 16, "avg_pool": 17, "add": 9},
    "shufflenet_v2_x1_0": {"cat": 16, "transpose": 16, "split": 13, "avg_pool": 1},
    "regnet_y_400mf": {"add": 16, "mul": 16, "sigmoid": 16, "avg_pool": 17},
    "densenet121": {"cat": 62, "avg_pool": 4, "batch_norm": 121},
    "convnext_tiny": {"layer_norm": 23, "gelu": 18, "add": 18, "linear": 37},
}


@pytest.mark.parametrize(
    "name",
    [*EXPECTED, *(pytest.param(name, marks=pytest.mark.slow) for name in EXPECTED_SLOW)],
)
@pytest.mark.parametrize("training", [False, True])
def test_every_layer_of_a_network_has_its_call(name: str, training: bool) -> None:
    kind = getattr(torchvision.models, name)
    model = kind(aux_logits=False, init_weights=False) if name == "googlenet" else kind()
    graph = _record(model, torch.randn(2, 3, 64, 64), training=training)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    called = [o for o in graph.operations if o.function in ("conv2d", "linear")]
    assert {o.site.leaf: o.facts["weight"] for o in called} == {n: f"{n}.weight" for n in layers}
    functions = Counter(o.function for o in graph.operations)
    expected = (EXPECTED | EXPECTED_SLOW)[name]
    assert {function: functions[function] for function in expected} == expected
    assert "other" not in functions
    assert not any(o.lost for o in graph.operations)
    assert {v for o in graph.operations for v in o.reads} <= graph.makers.keys() | {*graph.inputs}
    assert set(graph.outputs) <= graph.makers.keys()
