"""A training step compiled as a whole, and one that waits for nothing; against the plain one."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import qtool
from qtool.models.residual import BasicBlock
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.relu_family import RELU_FAMILY
from qtool.numerics.sign_family import SIGN_FAMILY
from qtool.quantizers.control import make_traceable, set_progress
from qtool.training.compiled import compiled_forward
from qtool.training.losses import cross_entropy
from qtool.training.optimizers import OPTIMIZERS, make_capturable, parameter_groups, set_rate
from qtool.training.step import TrainingStep

LINEAR = {"name": "linear", "start": 1.0, "stop": 4.0}
RISING = {"name": "linear", "start": 0.0, "stop": 1.0, "window": [0.0, 1.0]}
FREEZING = {"threshold": {"name": "linear", "start": 0.5, "stop": 0.001}, "momentum": 0.2}


def images(seed: int = 0, size: int = 8) -> Tensor:
    return torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(seed))


def labels() -> Tensor:
    return torch.arange(6) % 4


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 36, 4),
    )


def section(
    weights: dict[str, Any] | None = None, activations: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "weights": {"bits": 3} | (weights or {}),
        "activations": {"bits": 3, "place": "layer_inputs"} | (activations or {}),
    }


VARIANTS: dict[str, dict[str, Any]] = {
    "learned": section(),
    "at the ReLUs": section(activations={"place": "relu_outputs", "estimator": "clipped_relu"}),
    "blend": section({"blend": RISING, "range": "absmax"}),
    "blend beside an estimator": section(
        {"blend": RISING, "range": "absmax", "estimator": "straight_through"}
    ),
    "moving estimator": section({"estimator": {"name": "hyperbolic_tangent", "sharpness": LINEAR}}),
    "moving at inputs": section(
        activations={"estimator": {"name": "element_wise_gradient_scaling", "delta": LINEAR}}
    ),
    "searched": section({"range": "mse", "refit_every": 2}),
    "frozen and dampened": section({"freezing": FREEZING, "dampening": LINEAR}),
    "zero point": section(activations={"grid": "asymmetric", "range": "ema_min_max"}),
    "learned offset": section(activations={"grid": "asymmetric"}),
    "pact": section({"range": "dorefa"}, {"range": "pact"}),
    "fewer steps": section({"bits": 8, "saturation": "avoid"}, {"bits": 8}),
    "chain rule": section({"estimator": "sinusoidal", "scale_gradient": "chain_rule"}),
}


@pytest.mark.parametrize("limit", [0.1, 1e3])
def test_gradients_whose_norm_is_above_the_limit_are_shortened_to_it(limit: float) -> None:
    step, free = made(VARIANTS["learned"]), made(VARIANTS["learned"])
    step.clip = limit
    before = [p.detach().clone() for p in step.model.parameters()]
    for each in (step, free):
        each(images(), labels())
    gradients = [p.grad for p in free.model.parameters() if p.grad is not None]
    norm = sum(float(g.double().square().sum()) for g in gradients) ** 0.5
    factor = min(1.0, limit / (norm + 1e-6))
    assert (factor < 1) == (limit == 0.1)
    names = [name for name, _ in step.model.named_parameters()]
    assert any(name.endswith("weight_quantizer.scale") for name in names)
    for was, now, other in zip(
        before, step.model.parameters(), free.model.parameters(), strict=True
    ):
        assert other.grad is not None
        expected = was if factor < 1 else other.detach() + 0.05 * other.grad
        torch.testing.assert_close(now, expected - 0.05 * factor * other.grad)


def made(quantization: dict[str, Any]) -> TrainingStep:
    model = qtool.prepare(network(), deepcopy(quantization), images()).train()
    groups = parameter_groups(model)
    return TrainingStep(model, cross_entropy, OPTIMIZERS.build("sgd")(groups, 0.05))


def train(step: TrainingStep, steps: int = 5) -> list[float]:
    """Return the losses of steps in which everything moves that can."""
    losses = []
    for index in range(steps):
        set_progress(step.model, index / 10)
        set_rate(step.optimizer, 0.05 / (1 + index))
        losses.append(float(step(images(index), labels())[0]))
    return losses


QUICK = ("blend", "moving estimator", "frozen and dampened", "zero point")
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *OTHERS])
def test_a_trace_of_the_whole_model_trains_as_the_plain_model_does(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(made(VARIANTS[name]))
    counter = CompileCounterWithBackend("aot_eager")
    compile_ = torch.compile

    def with_counter(function: Any, **keys: Any) -> Any:
        return compile_(function, backend=counter, fullgraph=True, dynamic=False)

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", with_counter)
    step = made(VARIANTS[name])
    step.forward = compiled_forward(step.model)
    assert train(step) == pytest.approx(expected, rel=1e-4)
    # the second graph is for steps at which a range does not look at its values
    assert counter.frame_count == (2 if name == "zero point" else 1)


def test_a_model_that_cannot_be_traced_goes_on_plain_with_one_note(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.detach().sum()) > 1e9 else x * 1

    expected = train(made(section()))
    step = made(section())
    step.model.append(Branches())
    step.forward = compiled_forward(step.model)
    assert train(step) == pytest.approx(expected, rel=1e-6)
    assert capsys.readouterr().err.count("going on without compiling the model") == 1


def fitting(name: str) -> dict[str, Any]:
    """Return a section with an estimator wherever it fits."""
    if name in RELU_FAMILY:
        return section(activations={"estimator": name, "place": "relu_outputs"})
    bits = 1 if name in SIGN_FAMILY else 3
    side = {"bits": bits, "estimator": name}
    return {"weights": side, "activations": side}


ON_META = VARIANTS | {name: fitting(name) for name in ESTIMATORS.names()}


class Rests(torch.optim.SGD):
    """Moves nothing: torch's own steps are not what is tested, and need another device."""

    def step(self, closure: Any = None) -> None:
        del closure


@pytest.mark.parametrize("name", ON_META)
def test_nothing_in_a_step_waits_for_a_number_from_the_device(name: str) -> None:
    # a tensor on the meta device has no values: to read one, or to branch on one, raises
    step = made(ON_META[name])
    step.model.to("meta")
    make_traceable(step.model)
    step.optimizer = Rests(parameter_groups(step.model), 0.05)
    make_capturable(step.optimizer, torch.device("meta"))
    for index in range(3):
        set_progress(step.model, index / 10)
        set_rate(step.optimizer, 0.05)
        loss, logits = step(images().to("meta"), labels().to("meta"))
    assert loss.shape == ()
    assert logits.shape == (6, 4)


def test_residual_blocks_trace_with_quantizers_that_layers_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build() -> TrainingStep:
        torch.manual_seed(0)
        net = nn.Sequential(
            BasicBlock(3, 4, 1, "average_pool", affine=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        model = qtool.prepare(net, section(activations={"place": "relu_outputs"}), images())
        sgd = OPTIMIZERS.build("sgd")(parameter_groups(model.train()), 0.05)
        return TrainingStep(model, cross_entropy, sgd)

    expected = train(build())
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **keys: compile_(f, backend="aot_eager", fullgraph=True)
    )
    step = build()
    step.forward = compiled_forward(step.model)
    assert train(step) == pytest.approx(expected, rel=1e-4)
