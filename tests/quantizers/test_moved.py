"""What schedules move goes where the model goes: to a device, into a copy, through a state."""

from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.quantizers.control import make_traceable, set_progress
from qtool.quantizers.fake_quantize import FakeQuantize

RISES = {"name": "linear", "start": 1.0, "stop": 5.0}
SECTION: dict[str, Any] = {
    "weights": {"bits": 3, "estimator": {"name": "hyperbolic_tangent", "sharpness": RISES}}
}


def made() -> nn.Module:
    torch.manual_seed(0)
    return qtool.prepare(nn.Sequential(nn.Linear(4, 3)), SECTION, torch.randn(5, 4)).train()


def moved_of(model: nn.Module) -> tuple[FakeQuantize, Tensor, Tensor]:
    """Return a model's quantizer, its moving value, and the value that its estimator reads."""
    quantizer = model.get_submodule("0.weight_quantizer")
    assert isinstance(quantizer, FakeQuantize)
    assert isinstance(quantizer.estimator, partial)
    return quantizer, quantizer.moved["sharpness"], quantizer.estimator.keywords["sharpness"]


def gradients(model: nn.Module) -> Tensor:
    model.zero_grad()
    model(torch.ones(1, 4)).square().sum().backward()
    grad = model.get_parameter("0.weight").grad
    assert grad is not None
    return grad.clone()


def test_it_goes_to_the_device_of_the_model() -> None:
    model = made()
    make_traceable(model)
    _, kept, read = moved_of(model.to("meta"))
    assert kept is read
    assert kept.device.type == "meta"


def test_it_stays_in_float32_where_the_model_becomes_half() -> None:
    model = made()
    make_traceable(model)
    _, kept, read = moved_of(model.half())
    assert kept is read
    assert kept.dtype == torch.float32


@pytest.mark.parametrize("how", ["copy", "state"])
def test_a_copy_and_a_model_with_the_same_state_move_on_their_own(how: str) -> None:
    model, plain = made(), made()
    make_traceable(model)
    set_progress(model, 0.5)
    if how == "copy":
        other = deepcopy(model)
    else:
        other = made()
        other.load_state_dict(model.state_dict())
        make_traceable(other)
        set_progress(other, 0.5)
    _, kept, read = moved_of(other)
    assert kept is read
    assert kept is not moved_of(model)[1]
    assert float(kept) == 3.0
    for progress in (0.25, 1.0):
        set_progress(other, progress)
        set_progress(plain, progress)
        torch.testing.assert_close(gradients(other), gradients(plain))
    assert float(moved_of(model)[1]) == 3.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_it_goes_to_a_gpu_and_back() -> None:
    model, plain = made(), made()
    make_traceable(model)
    model.cuda()
    assert moved_of(model)[2].is_cuda
    set_progress(model, 0.75)
    set_progress(plain, 0.75)
    torch.testing.assert_close(gradients(model.cpu()), gradients(plain))
