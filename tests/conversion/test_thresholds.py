"""Values at rounding thresholds are told from faults where a network makes much of them."""

import copy

import pytest
import torch
from torch import nn

import qtool
from qtool.conversion.difference import OF_JOINS
from qtool.conversion.proof import prove
from qtool.conversion.thresholds import nudged
from qtool.errors import ConversionError
from qtool.graph.inputs import Inputs
from qtool.graph.sites.frames import sites_of
from qtool.integer.converted import converted_state
from qtool.quantizers.sites import quantizer_of

IMAGES = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
SECTION = {
    "weights": {"bits": 4},
    "activations": {"bits": 8, "join_bits": 8, "place": "every_value"},
}
STEP = 2.0**-4
# of the sum: a code k + 1/2 of it lies k * 2.4e-7 beyond the threshold, which float32 sees and the
# kernel does not, whose bytes lie 128 higher
DOUBLE_STEP = 2 * STEP * (1 - 2.0**-22)


class Wave(nn.Module):
    """Gives values a step apart that have nothing to do with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 17.0

    def forward(self, x):
        return torch.sin(self.factor * x)


class Net(nn.Module):
    """A sum, of which much is made."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(16, 64), nn.Linear(16, 64)
        self.through, self.wave = nn.Identity(), Wave()
        self.beside, self.last = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        total = self.one(x) + self.through(self.other(x))
        return self.last(self.wave(total) + 0.1 * self.beside(total))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made = qtool.prepare(Net(), SECTION, IMAGES)
    qtool.calibrate(made, [IMAGES])
    with torch.no_grad():
        for site, step in ((":linear0", STEP), (":linear1", STEP), (":add0", DOUBLE_STEP)):
            quantizer_of(sites_of(made)[site]).scale.fill_(step)
    qtool.round_biases(made)
    return made.eval()


@pytest.fixture(scope="module")
def integer(model) -> nn.Module:
    return qtool.convert(model)


def test_a_disagreement_of_values_at_thresholds_is_said_with_both_figures(model, integer):
    """And not hidden: the figures of the proof are what they are."""
    (note,) = converted_state(integer).notes
    assert "where all that it rounds moves by what float32 may" in note
    assert "the top class agrees on 0." in note
    proof = converted_state(integer).proof
    assert proof is not None
    assert proof.clear_agreement is not None
    assert proof.clear_agreement < 0.98
    assert f"{proof.median_abs_difference:.3g}" in note
    assert proof.largest_share_off > 0.01


def test_no_note_where_the_models_agree(model):
    """The same network, its sum in steps that few values lie between."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        quantizer_of(sites_of(other)[":add0"]).scale.fill_(STEP * 1.7)
    done = converted_state(qtool.convert(other))
    assert not done.notes
    assert done.proof is not None
    assert done.proof.clear_agreement == 1.0


def faulty(integer: nn.Module, fault: str) -> nn.Module:
    other = copy.deepcopy(integer)
    if fault == "behind the sum":
        wave = other.get_submodule("wave")
        assert isinstance(wave, Wave)
        wave.factor = 18.0
    else:
        through = other.get_submodule("through")
        through.register_forward_hook(lambda module, args, output: output.roll(1, 0))
    return other


@pytest.mark.parametrize("fault", ["behind the sum", "before the sum"])
def test_a_fault_in_such_a_network_is_a_fault(model, integer, fault):
    """Neither is seen at a layer or site, and at the outputs they look like thresholds."""
    batches = [Inputs.of(IMAGES)]
    prove(model, integer, batches, [])
    with pytest.raises(ConversionError, match="disagrees with the fake-quantized one"):
        prove(model, faulty(integer, fault), batches, [])


def test_biases_between_the_steps_of_int32_do_not_hide_thresholds(model):
    """The fake-quantized model with its biases in steps is what is moved and followed then."""
    between = copy.deepcopy(model)
    with torch.no_grad():
        for name in ("one", "other"):
            between.get_parameter(f"{name}.bias").add_(STEP / 20)
    of_biases, of_thresholds = converted_state(qtool.convert(between)).notes
    assert "qtool.round_biases" in of_biases
    assert of_thresholds.endswith("that is with biases in steps of int32")


def test_a_model_that_stands_still_under_nudges_has_a_fault(model, integer, monkeypatch):
    monkeypatch.setattr("qtool.conversion.thresholds.OF_JOINS", 0.0)
    with pytest.raises(ConversionError, match="disagrees with the fake-quantized one"):
        prove(model, integer, [Inputs.of(IMAGES)], [])


def test_nudges_are_of_float32s_rounding_and_leave_the_model_as_it_was(model):
    quantizer = sites_of(model)[":add0"]
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        before = model(IMAGES)
        with nudged(model, 0):
            handle = quantizer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
            x = torch.linspace(-1, 3, 9)  # 0 is the third
            quantizer(x)
            handle.remove()
        (given,) = seen
        apart = (given - x).abs()
        assert apart[2] == 0
        assert bool((apart[x != 0] > 0).all())
        assert bool((apart <= 3 * OF_JOINS * (1 + 0.2)).all())
        assert set(torch.sign(given - x)[x != 0].tolist()) == {-1.0, 1.0}
        assert torch.equal(model(IMAGES), before)
