"""Checkpoints as training scripts write them: the same tensors, and what was left out is said."""

import argparse
import copy
import pathlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from qtool.errors import DataError
from qtool.models.checkpoints import without_prefix
from qtool.models.papers import MODELS
from qtool.models.vision import Built, build_model

State = dict[str, Tensor]
ARGS = argparse.Namespace(lr=0.1, opt="sgd", milestones=[3, 6], nested=argparse.Namespace(a=1))


def network() -> nn.Module:
    return build_model("lenet5", 10, 1, 16).model


def load(path: Path) -> Built:
    return build_model("lenet5", 10, 1, 16, weights=str(path))


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return OrderedDict((f"{prefix}{key}", value) for key, value in state.items())


def zeros(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


def optimizer_state() -> dict[str, Any]:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.zeros(2, 1, 16, 16)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def averaged(state: State) -> State:
    model = network()
    model.load_state_dict(state)
    return AveragedModel(model).state_dict()


def compiled(state: State) -> State:
    model = network()
    model.load_state_dict(state)
    return torch.compile(model, backend="eager").state_dict()


def parallel(state: State) -> State:
    model = network()
    model.load_state_dict(state)
    return nn.DataParallel(model).state_dict()


def holder(name: str) -> Callable[[State], Any]:
    return lambda s: {name: s, "optimizer": optimizer_state(), "epoch": 3, "args": ARGS}


# who writes it -> (what a file holds, what is said)
FORMS: dict[str, tuple[Callable[[State], Any], str]] = {
    "bare": (lambda s: s, ""),
    "DataParallel": (parallel, "FILE: all names begin with module., which is left out"),
    "torch.compile": (compiled, ""),
    "compiled, then parallel": (lambda s: under("module._orig_mod.", s), "module."),
    "parallel, then compiled": (lambda s: under("_orig_mod.module.", s), "module."),
    "Lightning": (
        lambda s: {
            "epoch": 3,
            "state_dict": under("model.", s),
            "optimizer_states": [optimizer_state()],
            "loops": {"fit_loop": {"state_dict": {}}},
            "hyper_parameters": {"lr": 0.1},
            "pytorch-lightning_version": "2.4",
        },
        "FILE: all names begin with model., which is left out",
    ),
    "torchvision's references": (holder("model"), ""),
    "torchvision's references, averaged": (
        lambda s: holder("model")(s) | {"model_ema": averaged(zeros(s))},
        "FILE: model is taken, not model_ema",
    ),
    "PyTorch's tutorial": (
        lambda s: {"model_state_dict": s, "optimizer_state_dict": optimizer_state(), "loss": 0.3},
        "",
    ),
    "timm": (
        lambda s: {"arch": "x", "state_dict": s, "state_dict_ema": zeros(s), "args": ARGS},
        "FILE: state_dict is taken, not state_dict_ema",
    ),
    "AveragedModel": (averaged, "FILE: all names begin with module., which is left out"),
    "an average alone": (lambda s: {"ema": {"module": s, "decay": 0.99}}, ""),
    "a name of one's own": (lambda s: {"student": s, "epoch": 1}, ""),
    "half precision": (lambda s: {k: v.half() for k, v in s.items()}, ""),
    "extra state": (lambda s: {**s, "conv1._extra_state": None}, ""),
}


@pytest.mark.parametrize(("form", "said"), FORMS.values(), ids=FORMS.keys())
@pytest.mark.filterwarnings("ignore:.*torch.compile.*")
def test_what_trainers_write_loads_with_equal_tensors(
    form: Callable[[State], Any], said: str, tmp_path: Path
) -> None:
    state = {key: value.half().float() for key, value in network().state_dict().items()}
    path = tmp_path / "w.ckpt"
    torch.save(form(copy.deepcopy(state)), path)
    built = load(path)
    found = built.model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    assert said.replace("FILE", str(path)) in built.note
    assert bool(built.note) == bool(said)


def test_safetensors_with_a_prefix_loads(tmp_path: Path) -> None:
    state = network().state_dict()
    save_file(under("model.", state), tmp_path / "w.safetensors")
    found = load(tmp_path / "w.safetensors").model.state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_a_small_stem_is_known_by_weights_with_a_prefix(tmp_path: Path) -> None:
    state = build_model("resnet18", 7, 3, 32).model.state_dict()
    torch.save({"state_dict": under("model.", state)}, tmp_path / "w.ckpt")
    model: Any = build_model("resnet18", 7, 3, 96, weights=str(tmp_path / "w.ckpt")).model
    assert model.conv1.kernel_size == (3, 3)
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_no_network_of_qtool_has_a_prefix_that_would_be_left_out() -> None:
    for name in MODELS.names():
        own = {"columns": 4} if name == "two_linear_layers" else {}
        with torch.device("meta"):  # names alone
            state = MODELS.build(name, **own)(10, 3, 64).state_dict()
        assert without_prefix(OrderedDict(state))[1] == ""


# names in the file -> the prefix that is left out for a network of body.conv.weight and .bias
PREFIXES = {
    "body.conv.weight body.conv.bias": "",
    "model.body.conv.weight model.body.conv.bias": "model.",
    "a.b.body.conv.weight a.b.body.conv.bias": "a.b.",
    "model.body.conv.weight other.bias": "",
    "x.y.weight x.y.bias": "",
}


@pytest.mark.parametrize(("names", "prefix"), PREFIXES.items(), ids=PREFIXES.keys())
def test_a_prefix_is_left_out_where_the_rest_fits(names: str, prefix: str) -> None:
    state = OrderedDict((name, torch.ones(1)) for name in names.split())
    found, left_out = without_prefix(state, ["body.conv.weight", "body.conv.bias"])
    assert left_out == prefix
    assert [prefix + name for name in found] == list(state)


WRONG: dict[str, tuple[Callable[[State], Any], str]] = {
    "a whole model": (
        lambda s: network(),
        "holds torch.nn.modules.container.Sequential, and not tensors and plain data alone, and so "
        "is not safe to load; write it with torch.save(model.state_dict(), path)",
    ),
    "another object": (
        lambda s: {"state_dict": s, "path": pathlib.PurePosixPath("a")},
        "holds pathlib.PurePosixPath, and not tensors",
    ),
    "several": (lambda s: {"teacher": s, "student": s}, "several state_dicts, teacher, student;"),
    "none": (
        lambda s: {"epoch": 3, "optimizer": optimizer_state()},
        "is not a state_dict: no plain",
    ),
    "another network's": (lambda s: under("model.x.", s), "does not fit the model"),
}


@pytest.mark.parametrize(("form", "why"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_told_or_is_not_safe_is_refused(
    form: Callable[[State], Any], why: str, tmp_path: Path
) -> None:
    state = network().state_dict()
    if why == "does not fit the model":
        del state["conv1.weight"]
    torch.save(form(dict(state)), tmp_path / "w.pt")
    with pytest.raises(DataError) as caught:
        load(tmp_path / "w.pt")
    assert why in str(caught.value)
