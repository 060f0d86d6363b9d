"""Compiled kernels against the plain ones, and what happens without a compiler."""

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.sign_family import SIGN_FAMILY
from qtool.quantizers import kernels
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.settings.tensors import ActivationQuantization, WeightQuantization

NO_COMPILER = shutil.which("g++") is None and shutil.which("clang++") is None
NAMES = [name for name in ESTIMATORS.names() if name not in SIGN_FAMILY]


@pytest.fixture(autouse=True)
def begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_failures", [])


def inputs(grid: str = "unsigned", **keys: Any) -> FakeQuantize:
    settings = ActivationQuantization.model_validate({"bits": 4, "grid": grid} | keys)
    made = FakeQuantize(settings, settings.grid_for(signed=True))
    made.scale.data = torch.tensor(0.37)
    return made


def weights(channels: int, **keys: Any) -> FakeQuantize:
    made = FakeQuantize(
        WeightQuantization.model_validate({"bits": 4} | keys), IntegerGrid(4, "narrow")
    )
    made.scale.data = torch.linspace(0.2, 0.9, channels).reshape(-1, 1, 1, 1)
    return made


def outcome(made: FakeQuantize, x: Tensor, g: Tensor, compiles: bool) -> list[Tensor | None]:
    """Return the output and the gradients of x and of the scale."""
    made.compiles = compiles
    made.scale.grad = None
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = made.round_to_grid(x)
    y.backward(g)
    return [y.detach(), x.grad, made.scale.grad]


def check(made: FakeQuantize, x: Tensor) -> None:
    g = torch.randn_like(x)
    plain, fast = (outcome(made, x, g, compiles) for compiles in (False, True))
    assert not kernels._failures
    for one, other in zip(plain, fast, strict=True):
        assert (one is None) == (other is None)
    assert torch.equal(plain[0], fast[0])
    of_x, of_x_compiled = plain[1], fast[1]
    assert of_x is not None
    assert of_x_compiled is not None
    assert of_x.stride() == of_x_compiled.stride()
    largest = max(float(t.abs().max()) for t in (g, of_x))
    torch.testing.assert_close(of_x_compiled, of_x, rtol=0, atol=2e-6 * largest)
    if plain[2] is not None:
        torch.testing.assert_close(fast[2], plain[2], rtol=0, atol=1e-3 * float(g.norm()))


@pytest.mark.slow
@pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("estimator", NAMES)
def test_compiled_kernels_give_what_the_plain_ones_give(estimator: str) -> None:
    x = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(0)) * 3
    check(inputs(estimator=estimator), x)
    check(inputs(estimator=estimator), x.to(memory_format=torch.channels_last))
    check(inputs("full", estimator=estimator, scale_gradient="chain_rule"), x[:3])
    check(weights(6, estimator=estimator), torch.randn(6, 4, 3, 3))


@pytest.mark.slow
@pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "keys",
    [
        {"rounding": "ceil", "estimator": "clipped_relu"},
        {"range": "pact"},
        {"range": "absmax"},
        {"range": "absmax", "blend": {"name": "linear", "start": 0.5, "stop": 1.0}},
        {"range": "absmax", "blend": {"name": "linear", "start": 0.5}, "estimator": "identity"},
        {"estimator": {"name": "hyperbolic_tangent", "sharpness": 1.2}},
    ],
    ids=str,
)
def test_compiled_kernels_know_every_setting(keys: dict[str, Any]) -> None:
    x = torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(1)) * 3
    check(inputs(**keys), x)
    check(inputs(**keys), x.bfloat16())


def test_without_a_compiler_one_note_is_shown_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **keys: Any) -> Any:
        raise RuntimeError("no compiler found")

    monkeypatch.setattr(kernels.torch, "compile", refuse)
    kernels._forward_kernel.cache_clear()
    x = torch.randn(4, 6, 5, 5)
    made, g = inputs(), torch.randn(4, 6, 5, 5)
    plain = outcome(made, x, g, compiles=False)
    tried = [outcome(made, x, g, compiles=True) for _ in range(3)]
    assert all(torch.equal(a, b) for found in tried for a, b in zip(plain, found, strict=True))
    notes = capsys.readouterr().err.splitlines()
    assert len(notes) == 1
    assert "without compiled kernels" in notes[0]
    assert "no compiler found" in notes[0]


def test_a_backward_that_cannot_be_compiled_is_computed_plainly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any, **keys: Any) -> Any:
        raise RuntimeError("cannot be traced")

    monkeypatch.setattr(kernels, "backward", refuse)
    monkeypatch.setattr(
        kernels, "forward", lambda x, s, low, high, **_: (x / s).round().clamp(low, high) * s
    )
    x, g = torch.randn(4, 6, 5, 5), torch.randn(4, 6, 5, 5)
    made = inputs()
    plain = outcome(made, x, g, compiles=False)
    assert all(torch.equal(a, b) for a, b in zip(plain, outcome(made, x, g, True), strict=True))
