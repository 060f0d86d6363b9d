"""What one forward pass tells: which batch norm can be folded into which layer."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.graph.recorder import KEPT
from qtool.graph.recording import Recording
from qtool.quantizers.prepare import prepared_state
from qtool.quantizers.steps import Steps

WEIGHTS = {"weights": {"bits": 4, "range": "absmax"}}
BOTH = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}
IMAGES = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """Layers that `flow` connects."""

    def __init__(self, flow: Callable[["Net", Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.bn, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.free = nn.BatchNorm2d(3, track_running_stats=False)
        self.pass_on, self.relu = nn.Identity(), nn.ReLU()
        self.flow = flow

    def forward(self, x: Tensor) -> Any:
        return self.flow(self, x)


def with_output(use: Callable[[Net, Tensor], Any]) -> Callable[[Net, Tensor], Any]:
    """Hand the convolution's output to `use`."""
    return lambda net, x: use(net, net.conv(x))


def set_a_channel(net: Net, y: Tensor) -> Tensor:
    y[:, 0] = 0
    return net.bn(y)


def store(net: Net, y: Tensor) -> Tensor:
    shelf = torch.zeros(2, 3, 6, 6)
    shelf[:] = y
    return net.bn(y) + shelf


def keep(net: Net, y: Tensor) -> Any:
    return {"features": [y], "logits": net.bn(y)}


FOLDS = {
    "alone": with_output(lambda net, y: net.bn(y)),
    "behind an identity": with_output(lambda net, y: net.bn(net.pass_on(y))),
    "its shape is read": with_output(lambda net, y: net.bn(y) * y.shape[0] + y.dim() + y.size(1)),
}
FOLDS_NOT = {
    "a function reads it": with_output(lambda net, y: net.bn(y) + F.relu(y)),
    "a function reads it by keyword": with_output(lambda net, y: net.bn(y) + F.relu(input=y)),
    "a function reads it in a list": with_output(lambda net, y: torch.cat([net.bn(y), y])),
    "a method reads it": with_output(lambda net, y: net.bn(y) + y.mean()),
    "an operator reads it": with_output(lambda net, y: net.bn(y) + y),
    "it is read without gradient": with_output(lambda net, y: net.bn(y) + y.detach()),
    "another layer reads it": with_output(lambda net, y: net.bn(y) + net.other(y)),
    "a module reads it": with_output(lambda net, y: net.bn(y) + net.relu(y)),
    "two batch norms read it": with_output(lambda net, y: net.bn(y) + net.bn2(y)),
    "it is changed in place": with_output(lambda net, y: net.bn(y.mul_(2))),
    "a part of it is set": with_output(set_a_channel),
    "it is stored in another tensor": with_output(store),
    "it is an output of the model": with_output(keep),
    "something lies between": with_output(lambda net, y: net.bn(net.relu(y))),
    "the batch norm keeps no statistics": with_output(lambda net, y: net.free(y)),
    "the convolution runs twice": lambda net, x: net.bn(net.conv(net.conv(x))),
    "the batch norm runs twice": with_output(lambda net, y: net.bn(net.bn(y))),
    "the batch norm serves two": lambda net, x: net.bn(net.conv(x)) + net.bn(net.other(x)),
    "no batch norm reads it": with_output(lambda net, y: y),
}


def recording_of(model: nn.Module) -> Recording:
    return prepared_state(model).recording


def hooks_of(model: nn.Module) -> list[Any]:
    return [
        hook
        for module in model.modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called")
        for hook in getattr(module, kind).values()
        if not isinstance(getattr(hook, "__self__", None), Steps)  # which look at every pass
    ]


@pytest.mark.parametrize("quantization", [WEIGHTS, BOTH], ids=["weights", "both"])
@pytest.mark.parametrize("case", FOLDS)
def test_a_batch_norm_is_found_where(case: str, quantization: dict[str, Any]) -> None:
    model = qtool.prepare(Net(FOLDS[case]), quantization, IMAGES)
    assert recording_of(model).batch_norms == {"conv": "bn"}


@pytest.mark.parametrize("quantization", [WEIGHTS, BOTH], ids=["weights", "both"])
@pytest.mark.parametrize("case", FOLDS_NOT)
def test_no_batch_norm_is_found_where(case: str, quantization: dict[str, Any]) -> None:
    model = qtool.prepare(Net(FOLDS_NOT[case]), quantization, IMAGES)
    assert recording_of(model).batch_norms == {}


def test_each_layer_gets_its_own_batch_norm() -> None:
    net = Net(lambda net, x: net.bn2(net.other(net.bn(net.conv(x)))))
    found = recording_of(qtool.prepare(net, BOTH, IMAGES))
    assert found.batch_norms == {"conv": "bn", "other": "bn2"}
    assert found.calls == {"conv": 1, "other": 1}


def test_a_linear_layer_has_a_batch_norm_too() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.BatchNorm1d(5))
    assert recording_of(qtool.prepare(net, BOTH, IMAGES)).batch_norms == {"1": "2"}


def test_a_layer_left_float_has_no_part() -> None:
    quantization = BOTH | {"overrides": [{"match": "conv", "weights": None, "activations": None}]}
    model = qtool.prepare(Net(FOLDS["alone"]), quantization, IMAGES)
    assert recording_of(model).batch_norms == {}


def test_calls_are_counted() -> None:
    net = Net(FOLDS_NOT["the convolution runs twice"])
    assert recording_of(qtool.prepare(net, BOTH, IMAGES)).calls == {"conv": 2}


def test_the_first_images_are_kept() -> None:
    images = torch.randn(KEPT + 3, 3, 4, 4)
    kept = recording_of(qtool.prepare(Net(FOLDS["alone"]), BOTH, images)).example
    assert kept is not None
    (kept,) = kept.tensors
    assert torch.equal(kept, images[:KEPT])
    images.zero_()
    assert kept.any()


def test_the_recorded_pass_leaves_no_hooks() -> None:
    model = qtool.prepare(Net(FOLDS["alone"]), BOTH, IMAGES)
    assert hooks_of(model) == []


def test_hooks_of_the_user_stay() -> None:
    net = Net(FOLDS["alone"])
    seen: list[str] = []
    net.conv.register_forward_hook(lambda *_: seen.append("conv"))
    model = qtool.prepare(net, BOTH, IMAGES)
    assert len(hooks_of(model)) == 1
    assert set(seen) == {"conv"}


def test_without_example_the_first_training_pass_is_recorded_and_only_that_one() -> None:
    model = qtool.prepare(Net(FOLDS["alone"]), BOTH).train()
    assert recording_of(model) == Recording()
    model(IMAGES).square().sum().backward()
    assert model.get_parameter("conv.weight").grad is not None
    assert hooks_of(model) == []
    assert recording_of(model).batch_norms == {"conv": "bn"}
    model(2 * IMAGES)
    kept = recording_of(model).example
    assert kept is not None
    (kept,) = kept.tensors
    assert torch.equal(kept, IMAGES)
    assert recording_of(model).calls == {"conv": 1}


def test_a_first_pass_that_fails_is_not_the_recorded_one() -> None:
    model = qtool.prepare(Net(FOLDS["alone"]), BOTH)
    with pytest.raises(RuntimeError, match="channels"):
        model(torch.zeros(2, 5, 6, 6))
    model(IMAGES)
    assert recording_of(model).batch_norms == {"conv": "bn"}
    kept = recording_of(model).example
    assert kept is not None
    (kept,) = kept.tensors
    assert torch.equal(kept, IMAGES)
    assert hooks_of(model) == []


def test_a_copy_made_before_the_first_pass_records_its_own() -> None:
    model = qtool.prepare(Net(FOLDS["alone"]), BOTH)
    twin = copy.deepcopy(model)
    twin(2 * IMAGES)
    twin(2 * IMAGES)
    assert recording_of(twin).batch_norms == {"conv": "bn"}
    assert hooks_of(twin) == []
    assert recording_of(model) == Recording()
    model(IMAGES)
    twin(2 * IMAGES)
    assert recording_of(model).batch_norms == {"conv": "bn"}
    kept = recording_of(model).example
    assert kept is not None
    (kept,) = kept.tensors
    assert torch.equal(kept, IMAGES)


def test_a_copy_made_after_the_first_pass_knows_what_was_recorded() -> None:
    model = qtool.prepare(Net(FOLDS["alone"]), BOTH, IMAGES)
    twin = copy.deepcopy(model)
    assert recording_of(twin).batch_norms == {"conv": "bn"}
    assert torch.equal(twin.eval()(IMAGES), model.eval()(IMAGES))
    with torch.no_grad():
        twin.get_parameter("conv.weight").zero_()
    assert model.get_parameter("conv.weight").any()


@pytest.mark.parametrize("training", [True, False])
def test_the_example_leaves_batch_norms_random_numbers_and_the_mode_alone(training: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
    net.train(training)
    net(IMAGES)
    before = {name: tensor.clone() for name, tensor in net.named_buffers()}
    state = torch.get_rng_state()
    model = qtool.prepare(net, BOTH, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    after = dict(model.named_buffers())
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor)
