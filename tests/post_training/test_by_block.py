"""BRECQ: which parts of a network are blocks, and what learning them changes."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.conversion.to_integer import convert
from qtool.graph.copies import copy_of
from qtool.graph.inputs import Inputs
from qtool.integer.layers import integer_layers
from qtool.post_training.blocks import Block, blocks_in
from qtool.post_training.brecq import Images, _left_at_random
from qtool.post_training.by_block import brecq
from qtool.post_training.held_codes import codes_of
from qtool.post_training.kept import Keeper, Unit
from qtool.post_training.methods import Calibrated
from qtool.post_training.seen import order_of_calls
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.calibrate import calibrate
from qtool.quantizers.control import in_float
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.layers import quant_layers
from tests.post_training.test_by_layer import images


class Residual(nn.Module):
    """Two convolutions; what is read is added where the shape stays."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=outer // inner, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_()))
        if y.shape == x.shape:
            y += x
        return y.relu_()


class Network(nn.Module):
    """A stem, three blocks of which the second has no addition, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.blocks = nn.Sequential(Residual(4, 4), Residual(4, 8), Residual(8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


def network() -> Network:
    torch.manual_seed(0)
    net = Network().train()
    for _ in range(5):
        net(images())
    return net.eval()


def calibrated(place: str = "every_value") -> nn.Module:
    return copy_of(_calibrated(place))


@cache
def _calibrated(place: str) -> nn.Module:
    activations = {"bits": 3, "range": "mse", "place": place}
    settings = {"weights": {"bits": 3, "range": "mse"}, "activations": activations}
    model = qtool.prepare(network(), settings, images())
    calibrate(model, [images()])
    return model.eval().requires_grad_(requires_grad=False)


def given(model: nn.Module, keep: Path | None = None, seed: int = 0) -> Calibrated:
    return Calibrated(model, [Inputs((images()[:32],)), Inputs((images()[32:],))], seed, keep)


def parts(model: nn.Module) -> list[Block]:
    batch = Inputs((images(),))
    graph = prepared_state(model).graph
    return blocks_in(model, order_of_calls(model, batch), graph, batch)


def test_blocks_are_modules_in_which_values_join_and_those_of_their_class() -> None:
    assert parts(calibrated()) == [
        Block("stem", ("stem",)),
        *(Block(f"blocks.{n}", (f"blocks.{n}.conv1", f"blocks.{n}.conv2")) for n in range(3)),
        Block("head", ("head",)),
    ]


def test_without_a_graph_each_layer_is_a_part() -> None:
    assert [part.name for part in parts(calibrated("layer_inputs"))] == [
        "stem",
        *(f"blocks.{n}.conv{m}" for n in range(3) for m in (1, 2)),
        "head",
    ]


@pytest.mark.parametrize(
    "place", ["every_value", pytest.param("layer_inputs", marks=pytest.mark.slow)]
)
def test_outputs_come_nearer_and_the_integer_model_has_the_codes(place: str) -> None:
    model, x = calibrated(place), images(seed=2)
    with in_float(model):
        expected = model(x)
    nearest = {name: codes_of(layer) for name, layer in quant_layers(model).items()}
    before = float((model(x) - expected).square().mean())
    rows = brecq(given(model), iterations=40, images=16)
    for row in rows:
        assert row.error_before is not None
        assert row.error_after is not None
        assert row.error_after <= row.error_before
    steps = {row.layer: row.step for row in rows}
    block = "reconstruction" if place == "every_value" else None
    assert steps.get("blocks.1") == block
    assert float((model(x) - expected).square().mean()) < 0.7 * before
    assert not any(p.requires_grad for p in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    chosen = {name: codes_of(layer) for name, layer in quant_layers(model).items()}
    assert any(not torch.equal(nearest[name], chosen[name]) for name in chosen)
    for name, layer in integer_layers(convert(model, [images()])).items():
        stored = layer.codes.float()
        assert bool(((stored == chosen[name]) | (stored == -chosen[name])).all())


def test_steps_inside_a_block_are_learned_and_no_others() -> None:
    model = calibrated()
    before = {k: v.clone() for k, v in model.state_dict().items() if k.endswith(".scale")}
    brecq(given(model), iterations=20, images=16)
    moved = {
        key
        for key, value in model.state_dict().items()
        if key in before and not torch.equal(value, before[key])
    }
    assert {key[: len("blocks.0")] for key in moved} == {f"blocks.{n}" for n in range(3)}


def test_values_are_left_float_at_random() -> None:
    model = calibrated()
    quantizer = next(m for m in model.modules() if isinstance(m, ActivationQuantizer))
    x = torch.randn(4000, generator=torch.Generator().manual_seed(3))
    rounded = quantizer(x)
    with _left_at_random(quantizer, torch.Generator().manual_seed(0)):
        mixed = quantizer(x)
        rectified = quantizer(x, rectify=True)
    share = float((mixed == rounded).float().mean())
    assert 0.45 < share < 0.55
    assert torch.equal(mixed[mixed != rounded], x[mixed != rounded])
    assert bool((rectified >= 0).all())
    assert torch.equal(quantizer(x), rounded)


def test_an_error_is_a_share_of_the_spread_of_channels() -> None:
    y = torch.randn(6, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    mean = y.mean((0, 2, 3), keepdim=True).expand_as(y)
    assert Images(mean, mean, y).error(nn.Identity()) == pytest.approx(1)
    assert Images(y, y, y).error(nn.Identity()) == 0


@pytest.mark.slow
def test_killed_and_started_again_it_ends_the_same(tmp_path: Path) -> None:
    def state(keep: Path | None = None, seed: int = 0) -> dict[str, Tensor]:
        model = calibrated()
        brecq(given(model, keep, seed), iterations=8, images=8)
        return {k: v.clone() for k, v in model.state_dict().items()}

    whole, keep, added = state(), tmp_path / "model.rounding", Keeper.add

    def killed_after_three(self: Keeper, name: str, unit: Unit) -> None:
        added(self, name, unit)
        if len(self.units) == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "add", killed_after_three)
        with pytest.raises(KeyboardInterrupt):
            state(keep)
    again = state(keep)
    assert again.keys() == whole.keys()
    assert all(torch.equal(value, whole[key]) for key, value in again.items())
    assert not keep.exists()
    other = state(seed=1)
    assert any(not torch.equal(value, whole[key]) for key, value in other.items())
