"""Ranges of activations by what their readers give, against a search by the network's outputs."""

import weakref
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from qtool.graph.inputs import Inputs
from qtool.post_training.activation_ranges import SHARES, choose_activation_ranges
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.calibrate import calibrate
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.prepare import prepare
from qtool.quantizers.sites import SiteQuantizer


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Two(nn.Module):
    """Two convolutions, the second of which reads large values hardly at all."""

    def __init__(self, *, ignores: bool = False, adds: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.adds = adds
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.third = nn.Conv2d(8, 4, 3)
        if ignores:
            with torch.no_grad():
                self.first.weight[0] *= 6
                self.second.weight[:, 0] *= 1e-4

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        made = self.second(y)
        return made + self.third(y) if self.adds else made


def calibrated(net: nn.Module, batch: Tensor, activations: Mapping[str, object]) -> nn.Module:
    """Return a model whose activations alone are quantized, calibrated."""
    section = {"activations": {"bits": 4, **activations}}
    model = prepare(net, section, batch, trains=False)
    calibrate(model, [batch])
    return model.eval()


def quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    found = {m.place: m for m in model.modules() if isinstance(m, ActivationQuantizer)}
    assert all(isinstance(m, FakeQuantize) for m in found.values())
    return found


@torch.no_grad()
@pytest.mark.parametrize("place", ["every_value", "layer_inputs"])
@pytest.mark.parametrize("adds", [False, True])
def test_the_scale_is_that_of_the_smallest_variance_of_outputs(place: str, adds: bool) -> None:
    net, batch = Two(adds=adds), sample(16, 3, 10, 10)
    model = calibrated(net, batch, {"place": place})
    name = "sites.relu0" if place == "every_value" else "second.input_quantizer"
    quantizer = quantizers(model)[name]
    y = net.first(batch).relu()
    readers = [net.second, *([net.third] if adds and place == "every_value" else [])]
    before, found = quantizer.scale.clone(), {}
    for share in SHARES:
        quantizer.scale.copy_(before * share)
        wrong = [layer(quantizer(y)) - layer(y) for layer in readers]
        found[share] = sum(
            float((e - e.mean((0, 2, 3), keepdim=True)).square().sum()) for e in wrong
        )
    quantizer.scale.copy_(before)
    choose_activation_ranges(model, Inputs.of(batch))
    assert float(quantizer.scale) == pytest.approx(
        float(before) * min(found, key=found.__getitem__)
    )


@torch.no_grad()
def test_values_that_no_reader_heeds_do_not_stretch_the_range() -> None:
    batch = sample(16, 3, 10, 10)
    model = calibrated(Two(ignores=True), batch, {})
    before = float(quantizers(model)["sites.relu0"].scale)
    done = choose_activation_ranges(model, Inputs.of(batch))
    assert float(quantizers(model)["sites.relu0"].scale) == pytest.approx(SHARES[0] * before)
    (row,) = (row for row in done if row.layer == "sites.relu0")
    assert row.error_before is not None
    assert row.error_after is not None
    assert row.error_after < 0.5 * row.error_before
    assert row.note == "0.5 of the range by its values"


def test_a_range_that_is_said_or_that_a_join_reads_stays() -> None:
    batch = sample(16, 3, 10, 10)
    for net, activations in ((Two(), {"range": "mse"}), (Joined(), {"join_bits": 4})):
        model = calibrated(net, batch, activations)
        before = {n: float(q.scale) for n, q in quantizers(model).items()}
        choose_activation_ranges(model, Inputs.of(batch))
        after = {n: float(q.scale) for n, q in quantizers(model).items()}
        kept = after if isinstance(net, Two) else ["sites.relu0"]
        assert {n: before[n] for n in kept} == {n: after[n] for n in kept}


class Between(nn.Module):
    """A value that a linear layer reads through an operator."""

    def __init__(self, between: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.first, self.drop = nn.Conv2d(3, 8, 3), nn.Dropout()
        self.second = nn.Linear(8 * 64 // (4 if between == "max_pool" else 1), 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        if self.between == "max_pool":
            y = nn.functional.max_pool2d(y, 2)
        if self.between == "dropout":
            y = self.drop(y)
        return self.second(y.flatten(1))


@pytest.mark.parametrize(
    ("between", "chosen"), [("nothing", True), ("dropout", True), ("max_pool", False)]
)
def test_a_value_is_known_through_what_passes_it_on_unchanged(between: str, chosen: bool) -> None:
    batch = sample(16, 3, 10, 10)
    model = calibrated(Between(between), batch, {})
    done = {row.layer for row in choose_activation_ranges(model, Inputs.of(batch))}
    assert done == {"sites.input0", *(["sites.relu0"] if chosen else [])}


def test_values_are_let_go_as_the_pass_goes_on() -> None:
    depth, batch = 12, sample(4, 3, 8, 8)
    layers = [(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(depth)]
    model = calibrated(nn.Sequential(*(m for pair in layers for m in pair)), batch, {})
    made: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    def note(site: nn.Module, args: object, output: Tensor) -> None:
        made.append(weakref.ref(output))
        counts.append(sum(one() is not None for one in made))

    for module in model.modules():
        if isinstance(module, SiteQuantizer):
            module.register_forward_hook(note)
    choose_activation_ranges(model, Inputs.of(batch))
    assert len(counts) >= depth
    assert max(counts) <= 3


class Joined(nn.Module):
    """A value that a convolution and an addition read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        return self.second(y) + y
