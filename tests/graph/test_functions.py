"""Functions of a graph of values: one name for every form, where the arguments allow it."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from qtool.graph.sites.functions import function_of, passes_on, reads_values


class _Names(TorchFunctionMode):
    """Notes the name of every function that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str | None] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.names.append(function_of(func, args, kwargs))
        return func(*args, **kwargs)


def _iadd(x: Tensor) -> Tensor:
    y = x.clone()
    y += x
    return y


FORMS = {
    "add": [lambda x: x + x, lambda x: 1 + x, lambda x: torch.add(x, x), _iadd],
    "sub": [lambda x: x - x, lambda x: 1 - x],
    "mul": [lambda x: x * 2, lambda x: 2 * x, lambda x: x.mul_(x)],
    "div": [lambda x: x / 6, lambda x: torch.div(x, 6)],
    "relu": [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        torch.relu,
        F.relu_,
        lambda x: x.relu(),
        lambda x: x.clamp(min=0),
        lambda x: x.clamp_min(0),
        lambda x: torch.clamp_min(x, 0.0),
        lambda x: F.hardtanh(x, 0.0, float("inf")),
    ],
    "clip": [
        nn.ReLU6(),
        nn.Hardtanh(),
        F.relu6,
        lambda x: x.clamp(0, 6),
        lambda x: torch.clamp(x, min=-1, max=1),
        lambda x: x.clip_(0, 1),
    ],
    "avg_pool": [
        nn.AdaptiveAvgPool2d(1),
        nn.AvgPool2d(2),
        lambda x: x.mean([2, 3]),
        lambda x: x.mean((-1, -2), keepdim=True),
        lambda x: torch.mean(x, dim=(3, 2)),
    ],
    "max_pool": [nn.MaxPool2d(2), lambda x: x.amax((2, 3)), nn.AdaptiveMaxPool2d(1)],
    "hardswish": [nn.Hardswish()],
    "hardsigmoid": [nn.Hardsigmoid(inplace=True)],
    "silu": [nn.SiLU()],
    "sigmoid": [nn.Sigmoid(), torch.sigmoid, lambda x: x.sigmoid()],
    "gelu": [nn.GELU()],
    "softmax": [nn.Softmax(1), lambda x: x.softmax(-1)],
    "cat": [lambda x: torch.cat([x, x]), lambda x: torch.concat((x, x), 1)],
    "flatten": [nn.Flatten(), lambda x: torch.flatten(x, 1)],
    "reshape": [lambda x: x.view(1, -1), lambda x: x.reshape(-1), nn.Unflatten(1, (2, 2))],
    "transpose": [lambda x: x.permute(0, 2, 3, 1), lambda x: x.transpose(1, 2), lambda x: x.mT],
    "split": [lambda x: x.chunk(2, 1), lambda x: torch.split(x, 2, 1), lambda x: x.unbind(1)],
    "slice": [lambda x: x[:, 1:, ..., 0], lambda x: x.narrow(1, 0, 2)],
    "squeeze": [lambda x: x.squeeze(), lambda x: x[None].unsqueeze(0)],
    "contiguous": [lambda x: x.contiguous(), lambda x: x.float(), lambda x: x.to("cpu")],
    "dropout": [nn.Dropout(), lambda x: F.dropout2d(x, 0.5)],
    "pad": [nn.ZeroPad2d(1), lambda x: F.pad(x, (1, 1))],
    "interpolate": [nn.Upsample(scale_factor=2)],
    "matmul": [lambda x: x @ x, lambda x: torch.bmm(x[0], x[0])],
    "attention": [lambda x: F.scaled_dot_product_attention(x, x, x)],
    "layer_norm": [nn.LayerNorm(4)],
    "batch_norm": [nn.BatchNorm2d(4).eval()],
    "conv2d": [nn.Conv2d(4, 2, 3, padding=1)],
    "linear": [nn.Linear(4, 2)],
    None: [
        lambda x: x.mean([1, 2]),
        lambda x: x.mean(),
        lambda x: x.mean(2).mean(2),
        lambda x: x.clamp(max=1),
        lambda x: x.clamp(x, x),
        lambda x: torch.add(x, x, alpha=2),
        lambda x: torch.add(x, x, out=torch.empty_like(x)),
        lambda x: x[torch.tensor([0])],
        lambda x: x.double(),
        lambda x: x.view(torch.int32),
        lambda x: torch.tensor(3) + 1,
        lambda x: torch.exp(x),
        lambda x: torch.div(x, 2, rounding_mode="floor"),
    ],
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_a_function_has_its_name(name: str | None) -> None:
    for form in FORMS[name]:
        x = torch.randn(1, 4, 4, 4)
        with torch.no_grad(), _Names() as seen:
            form(x)
        assert seen.names[-1] == name, form


def test_what_is_made_of_a_shape_reads_no_values() -> None:
    assert not reads_values(torch.zeros_like)
    assert not reads_values(Tensor.new_full)
    assert reads_values(torch.relu)


def test_a_pooling_that_makes_numbers_does_not_pass_on() -> None:
    assert passes_on("max_pool", {})
    assert passes_on("pad", {"mode": "reflect"})
    assert passes_on("pad", {"mode": "constant", "value": 0.0})
    assert not passes_on("pad", {"mode": "constant", "value": 1.0})
    assert passes_on("interpolate", {"mode": "nearest"})
    assert not passes_on("interpolate", {"mode": "bilinear"})
    assert not passes_on("avg_pool", {})
