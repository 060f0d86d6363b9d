"""Optimizers, and which parameters they treat alike.

Each takes parameter groups and a starting learning rate and returns a torch optimizer. To add
one, write a function here and decorate it: its name is its name in recipes. Any of torch.optim goes
by torch's name, as `qtool.training.torch_optimizers` has it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn

from qtool.problems import Problem
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.interval import Interval
from qtool.quantizers.layers import QuantLayer
from qtool.registry import FactRegistry, P
from qtool.training.torch_optimizers import of_torch, refused_by_torch, unfit


@dataclass(frozen=True, kw_only=True)
class OptimizerFacts:
    """What the rest of qtool must know of an optimizer."""

    adaptive: bool = False
    """Of Adam's family: its steps do not grow with the gradient (arXiv:2405.05171)."""

    maps: bool = False
    """A run's straight-through form is known, and its state can be carried over."""

    graphed: bool = True
    """A CUDA graph may hold its step."""


class Optimizers(FactRegistry[Callable[..., torch.optim.Optimizer], P, OptimizerFacts]):
    """The table of optimizers; those of torch.optim are members whose names are torch's."""

    def __init__(self, family: str, facts: Callable[P, OptimizerFacts]) -> None:
        super().__init__(family, facts)
        self._of_torch: set[str] = set()

    def list_torch(self) -> None:
        """Let those of torch.optim be members, too, which `names` leaves out."""
        for name, make, graphed in of_torch():
            grows = name in GROWING
            self._add(make, name, facts=OptimizerFacts(adaptive=not grows, graphed=graphed))
            self._of_torch.add(name)

    def names(self) -> list[str]:
        """Return the names of the others; which torch.optim has depends on the version of torch."""
        return [name for name in super().names() if name not in self._of_torch]

    def problems(self, name: str, params: Mapping[str, object]) -> list[Problem]:
        """Return every (parameter, what is wrong with it); `""` stands for the name itself."""
        if why := unfit(name):
            return [("", why)]
        found = super().problems(name, params)
        if found or name not in self._of_torch:
            return found
        return refused_by_torch(name, self[name], params)


GROWING = {"SGD", "ASGD"}  # of torch.optim: whose steps grow with the gradient
OPTIMIZERS = Optimizers("optimizer", OptimizerFacts)
Momentum = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]


class Group(TypedDict):
    """Parameters that are treated alike.

    Attributes:
        params: the parameters.
        role: weights are latent and float weights, the only ones that decay; scales are learned;
            others are biases and batch norm.
        rate_scale: factor on the learning rate.
    """

    params: list[nn.Parameter]
    role: Literal["weights", "scales", "others"]
    rate_scale: float


def _are_betas(value: list[float]) -> list[float]:
    if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
        raise ValueError(f"{value} is not a pair of numbers, 0 <= beta < 1")
    return value


Betas = Annotated[list[float], AfterValidator(_are_betas)]
ADAM_BETAS = [0.9, 0.999]


@OPTIMIZERS.add(maps=True)
def sgd(
    groups: list[Group],
    rate: float,
    *,
    momentum: Momentum = 0.9,
    weight_decay: Decay = 0.0,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Step by v <- momentum v + g, w <- w - rate v."""
    nesterov = nesterov and momentum > 0
    decaying = with_decay(groups, weight_decay)
    return torch.optim.SGD(decaying, rate, momentum=momentum, nesterov=nesterov, fused=True)


@OPTIMIZERS.add(adaptive=True, maps=True)
def adamw(
    groups: list[Group],
    rate: float,
    *,
    betas: Betas = ADAM_BETAS,
    eps: Annotated[float, Field(gt=0)] = 1e-8,
    weight_decay: Decay = 0.01,
) -> torch.optim.Optimizer:
    """Step by Adam with decoupled weight decay.

    Reference: Loshchilov and Hutter, 2017, arXiv:1711.05101.
    """
    decaying = with_decay(groups, weight_decay)
    return torch.optim.AdamW(decaying, rate, betas=(betas[0], betas[1]), eps=eps, fused=True)


@OPTIMIZERS.add(adaptive=True, maps=True)
def adam(
    groups: list[Group],
    rate: float,
    *,
    betas: Betas = ADAM_BETAS,
    eps: Annotated[float, Field(gt=0)] = 1e-8,
    weight_decay: Decay = 0.0,
) -> torch.optim.Optimizer:
    """Step by Adam; weight decay is added to the gradient, which it then scales.

    Reference: Kingma and Ba, 2014, arXiv:1412.6980.
    """
    decaying = with_decay(groups, weight_decay)
    return torch.optim.Adam(decaying, rate, betas=(betas[0], betas[1]), eps=eps, fused=True)


@OPTIMIZERS.add(adaptive=True)
def rmsprop(
    groups: list[Group],
    rate: float,
    *,
    alpha: Annotated[float, Field(ge=0, lt=1)] = 0.99,
    eps: Annotated[float, Field(gt=0)] = 1e-8,
    momentum: Momentum = 0.0,
    centered: bool = False,
    weight_decay: Decay = 0.0,
) -> torch.optim.Optimizer:
    """Step by the gradient over sqrt(v) + eps, where v <- alpha v + (1 - alpha) g^2.

    Centered subtracts the square of the gradient's moving average from v.

    Reference: Tieleman and Hinton, 2012, Lecture 6.5, Neural Networks for Machine Learning
    """
    decaying = with_decay(groups, weight_decay)
    return torch.optim.RMSprop(
        decaying, rate, alpha=alpha, eps=eps, momentum=momentum, centered=centered
    )


OPTIMIZERS.list_torch()


def with_decay(groups: list[Group], weight_decay: float) -> list[dict[str, object]]:
    """Return the groups with weight decay on weights only."""
    return [{**g, "weight_decay": weight_decay if g["role"] == "weights" else 0.0} for g in groups]


def parameter_groups(model: nn.Module, *, latent_apart: bool = False) -> list[Group]:
    """Split the parameters that train by role; each group keeps its own `rate_scale`.

    Where `latent_apart`, no group holds both weights that are quantized and others.
    """
    weights: dict[tuple[float, bool], list[nn.Parameter]] = {}
    scales: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            if isinstance(module, FakeQuantize | Interval):
                scales.append(parameter)
            elif name == "weight" and isinstance(module, QuantLayer):
                latent = latent_apart and module.weight_quantizer is not None
                factor = module.learning_rate_scale
                weights.setdefault((factor, latent), []).append(parameter)
            elif parameter.ndim > 1:
                weights.setdefault((1.0, False), []).append(parameter)
            else:
                others.append(parameter)
    groups: list[Group] = [
        {"params": members, "role": "weights", "rate_scale": factor}
        for (factor, _), members in weights.items()
    ]
    if scales:
        groups.append({"params": scales, "role": "scales", "rate_scale": 1.0})
    if others:
        groups.append({"params": others, "role": "others", "rate_scale": 1.0})
    return groups


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times the group's own factor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate * group["rate_scale"])
        else:
            group["lr"] = rate * group["rate_scale"]


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep what changes from step to step on the device, as a CUDA graph of a step needs."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
        if "capturable" in group:
            group["capturable"] = True
