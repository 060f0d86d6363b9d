"""When a training step begins: passes counted against the optimizer steps that were taken."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import qtool
from qtool.graph.calls import CountsCalls
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.layers import quant_layers, take_oscillations
from qtool.quantizers.steps import modules_of
from qtool.quantizers.weights import WeightQuantizer

SECTION: dict[str, Any] = {
    "weights": {"bits": 2, "range": "absmax"},
    "activations": {
        "bits": 4,
        "place": "layer_inputs",
        "range": {"name": "ema_min_max", "every": 2, "decay": 0.5},
    },
}
LEARNED: dict[str, Any] = {
    "weights": {"bits": 3},
    "activations": {"bits": 4, "place": "layer_inputs"},
}
IMAGES = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Three layers, the second of which may be run again in the backward pass."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu = nn.Linear(4, 6), nn.ReLU()
        self.second, self.third = nn.Linear(6, 6), nn.Linear(6, 3)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        if self.reentrant is None:
            x = self.second(x)
        else:
            made = checkpoint(self.second, x, use_reentrant=self.reentrant)
            assert isinstance(made, Tensor)
            x = made
        return self.third(self.relu(x))


def prepared(section: dict[str, Any] = SECTION, reentrant: bool | None = None) -> nn.Module:
    return qtool.prepare(Net(reentrant), section, IMAGES).train()


def weight_quantizers(model: nn.Module) -> list[WeightQuantizer]:
    found = [layer.weight_quantizer for layer in quant_layers(model).values()]
    return [quantizer for quantizer in found if quantizer is not None]


def counted(model: nn.Module) -> set[tuple[int, int]]:
    """Return the steps that each layer's weight and input have counted."""
    return {
        (layer.weight_quantizer.steps, layer.input_quantizer.observer.steps)
        for layer in quant_layers(model).values()
        if layer.weight_quantizer is not None and layer.input_quantizer is not None
    }


def optimizer_of(model: nn.Module, rate: float = 0.05, **keys: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], rate, **keys)


def train(
    model: nn.Module,
    steps: int,
    parts: int = 1,
    *,
    call: Callable[[Tensor], Tensor] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    begin: bool = False,
) -> nn.Module:
    optimizer, call = optimizer or optimizer_of(model), model if call is None else call
    for step in range(steps):
        if begin:
            qtool.begin_step(model)
        for part in (IMAGES * (1 + step)).split(len(IMAGES) // parts):
            (call(part).square().mean() / parts).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, Tensor)}


def assert_same(model: nn.Module, other: nn.Module) -> None:
    """Compare states; what an input counts matters only where its range follows its values."""
    for quantizer in [*model.modules(), *other.modules()]:
        if isinstance(quantizer, ActivationQuantizer) and not quantizer.follows:
            quantizer.observer.steps = 0
    found, expected = state(other), state(model)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


class WritesPast(torch.optim.Optimizer):
    """An optimizer that writes to .data, which no version counter tells of."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.data.add_(parameter.grad, alpha=-0.05)


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "foreach": optimizer_of,
    "one by one": lambda m: optimizer_of(m, foreach=False),
    "fused": lambda m: optimizer_of(m, fused=True),
    "adam": lambda m: torch.optim.Adam([p for p in m.parameters() if p.requires_grad], 0.01),
    "past the counters": lambda m: WritesPast([p for p in m.parameters() if p.requires_grad]),
}


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_steps_are_those_of_the_optimizer(make, parts: int) -> None:
    model = prepared()
    train(model, 5, parts, optimizer=make(model))
    assert counted(model) == {(5, 5)}
    assert {q.tracker.steps for q in weight_quantizers(model)} == {4}  # changes between five


def test_a_loop_that_writes_weights_by_itself_takes_steps() -> None:
    for write in ("in place", "anew"):
        model = prepared()
        for _ in range(3):
            for part in IMAGES.split(4):
                model(part).square().mean().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None and write == "in place":
                        parameter -= 0.01 * parameter.grad
                    elif parameter.grad is not None:
                        parameter.data = parameter.data - 0.01 * parameter.grad
            model.zero_grad()
        assert counted(model) == {(3, 3)}


@pytest.mark.parametrize("section", [SECTION, LEARNED], ids=["followed", "learned"])
def test_whole_batches_train_as_with_begin_step(section) -> None:
    assert_same(train(prepared(section), 5, begin=True), train(prepared(section), 5))


def test_the_first_part_of_a_step_is_looked_at_and_no_other() -> None:
    """Expected: the moving average of the first quarter's extremes at steps 0 and 2."""
    for begin in (False, True):
        model = prepared()
        layer = quant_layers(model)["first"]
        assert layer.input_quantizer is not None
        average = layer.input_quantizer.observed.clone()
        train(model, 4, 4, begin=begin)
        for step in (0, 2):
            seen = IMAGES[:2] * (1 + step)
            average += (1 - 0.5**2) * (torch.stack([seen.min(), seen.max()]) - average)
        torch.testing.assert_close(layer.input_quantizer.observed, average)


def test_a_first_pass_that_sets_scales_begins_one_step() -> None:
    model = qtool.prepare(Net(), LEARNED).train()
    train(model, 1, 4)
    assert {q.tracker.steps for q in weight_quantizers(model)} == {0}  # one step, no change yet


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("section", [SECTION, LEARNED], ids=["followed", "learned"])
def test_a_pass_that_checkpointing_repeats_is_no_step(section, reentrant: bool) -> None:
    plain = train(prepared(section), 4)
    assert_same(plain, train(prepared(section, reentrant), 4))
    assert_same(plain, train(prepared(section, reentrant), 4, begin=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_that_is_checkpointed_as_a_whole_counts_its_steps(reentrant: bool) -> None:
    model = prepared()

    def call(x: Tensor) -> Tensor:
        made = checkpoint(model, x.requires_grad_(), use_reentrant=reentrant)
        assert isinstance(made, Tensor)
        return made

    train(model, 5, call=call)
    # where the first pass is made without gradients, it is known for one of training by its second
    assert counted(model) == {(4, 5) if reentrant else (5, 5)}


def test_a_step_that_is_skipped_is_none() -> None:
    model = prepared()
    optimizer = optimizer_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(4):
        loss = model(IMAGES).square().mean()
        scaler.scale(loss * torch.inf if step in (1, 2) else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert counted(model) == {(2, 2)}


def test_steps_of_other_models_and_passes_in_evaluation_are_none() -> None:
    model, other = prepared(), nn.Linear(2, 2)
    train(model, 1)
    elsewhere = torch.optim.SGD(other.parameters(), 0.1, fused=True)
    for _ in range(3):
        other(torch.ones(1, 2)).sum().backward()
        elsewhere.step()
        model.eval()(IMAGES)
        with torch.no_grad():
            model(IMAGES)
        model.train()
    train(model, 1)
    assert counted(model) == {(2, 2)}


def test_a_part_of_a_bigger_model_counts_its_steps() -> None:
    body = prepared()
    model = nn.Sequential(body, nn.Linear(3, 2))
    train(model, 4, 2)
    assert counted(body) == {(4, 4)}
    train(model, 2, 2, begin=True)
    assert counted(body) == {(6, 6)}


def test_layers_that_are_called_without_their_model_count_steps_of_their_own() -> None:
    model = prepared()
    assert isinstance(model, Net)

    def call(x: Tensor) -> Tensor:
        return model.second(model.relu(model.first(x)))

    train(model, 3, 2, call=call)
    steps = [quantizer.steps for quantizer in weight_quantizers(model)]
    assert steps == [3, 3, 0]


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_counts_its_own_steps(way: str) -> None:
    model = train(prepared(), 3, begin=True)
    other = copy.deepcopy(model) if way == "deepcopy" else pickle.loads(pickle.dumps(model))
    train(other, 2, 2)
    assert (counted(model), counted(other)) == ({(3, 3)}, {(5, 5)})
    train(model, 1, begin=True)
    assert counted(model) == {(4, 4)}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("begin", [False, True])
def test_a_layer_that_is_frozen_stays_as_it_is(learned: bool, begin: bool) -> None:
    section = copy.deepcopy(LEARNED if learned else SECTION)
    section["weights"]["freezing"] = {"threshold": 0.02, "momentum": 0.3}
    if not learned:
        section["weights"]["range"] = "ppq"  # moves at every step
    model = prepared(section)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.1)
    layer = quant_layers(model)["second"]
    assert layer.weight_quantizer is not None
    train(model, 3, optimizer=optimizer, begin=begin)
    optimizer.zero_grad(set_to_none=False)
    layer.weight.requires_grad_(False)
    layer.weight.grad = None
    before = layer.weight_quantizer(layer.weight).detach().clone()
    scale = layer.weight_quantizer.scale.detach().clone()
    train(model, 4, optimizer=optimizer, begin=begin)
    assert torch.equal(layer.weight_quantizer(layer.weight), before)
    assert torch.equal(layer.weight_quantizer.scale.detach(), scale)
    layer.weight.requires_grad_()
    train(model, 3, optimizer=optimizer, begin=begin)
    assert not torch.equal(layer.weight_quantizer.scale.detach(), scale)


def test_a_weight_that_was_frozen_before_has_a_frozen_scale() -> None:
    net = Net()
    net.second.weight.requires_grad_(False)
    model = qtool.prepare(net, LEARNED, IMAGES).train()
    trains = {name: p.requires_grad for name, p in model.named_parameters()}
    expected = {"second.weight", "second.weight_quantizer.scale"}
    assert {name for name, does in trains.items() if not does} == expected
    train(model, 2)
    assert isinstance(model, Net)
    model.second.weight.requires_grad_()
    model(IMAGES)
    assert all(p.requires_grad for p in model.parameters())


def test_a_blend_over_a_frozen_weight_goes_on_with_the_scale_it_had() -> None:
    blend = {"name": "linear", "start": 0.0, "stop": 1.0}
    net = Net()
    net.second.weight.requires_grad_(False)
    section = {"weights": {"bits": 3, "range": "ppq", "blend": blend}}
    model = qtool.prepare(net, section, IMAGES).train()
    layer = quant_layers(model)["second"]
    assert layer.weight_quantizer is not None
    start = layer.weight_quantizer.scale.clone()
    for step in range(3):
        qtool.set_progress(model, (step + 1) / 3)
        train(model, 1, optimizer=torch.optim.SGD(model.parameters(), 0.01)) if step < 2 else None
    assert layer.weight_quantizer.alpha == 1
    assert torch.equal(layer.weight_quantizer.scale, start)


RELUS: dict[str, Any] = {
    "weights": {"bits": 4},
    "activations": {"bits": 2, "place": "relu_outputs"},
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # by torch, at a graph break
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("begin", [False, True])
def test_relus_are_quantized_where_forward_alone_is_called(begin: bool, parts: int) -> None:
    """As torch.compile(model.forward) does: no hook of the model runs."""
    expected = train(prepared(RELUS), 3, parts, begin=begin)
    model = prepared(RELUS)
    compiled = torch.compile(model.forward, backend="eager", fullgraph=begin)
    train(model, 3, parts, begin=begin, call=compiled)
    assert any(isinstance(module, CountsCalls) for module in model.modules())
    assert_same(expected, model)


def test_calls_beyond_those_of_the_recorded_pass_stay_float() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.fc, self.times = nn.ReLU(), nn.Linear(4, 4), 1

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc(self.relu(x))
            for _ in range(self.times - 1):
                x = self.relu(x)
            return x

    model = qtool.prepare(Twice(), RELUS, IMAGES).eval()
    assert isinstance(model, Twice)
    model.times = 2
    with torch.no_grad():
        output = model(IMAGES)
        model.times = 1
        expected = model(IMAGES).relu()
    assert torch.equal(output, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # by torch, at a graph break
@pytest.mark.parametrize("section", [SECTION, LEARNED, RELUS], ids=["followed", "learned", "relus"])
def test_a_compiled_model_counts_the_same_steps(section) -> None:
    expected = train(prepared(section), 5, 2)
    model = prepared(section)
    train(model, 5, 2, call=torch.compile(model, backend="eager"))
    assert counted(model) == counted(expected)
    flips = take_oscillations(expected)["flip_ratio"]
    assert take_oscillations(model)["flip_ratio"] == flips
    assert_same(expected, model)


def test_once_begun_by_hand_a_model_compiles_as_a_whole() -> None:
    expected = train(prepared(), 4, begin=True)
    model = prepared()
    train(model, 1, begin=True)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    optimizer = optimizer_of(model)
    for step in range(1, 4):
        qtool.begin_step(model)
        compiled(IMAGES * (1 + step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(expected, model)


def test_the_modules_that_a_step_looks_at_are_all_of_the_model_in_order() -> None:
    model = prepared()
    model.add_module("again", next(model.children()))  # shared: it comes once
    model.add_module("none", None)
    model.add_module("more", nn.Sequential(nn.Sequential(nn.ReLU()), nn.ModuleDict()))
    assert modules_of(model) == list(model.modules())
