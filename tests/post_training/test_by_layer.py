"""Methods that choose the rounding of one layer after another: what they change, and going on."""

from collections.abc import Mapping
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
from qtool.post_training import by_layer
from qtool.post_training.held_codes import codes_of
from qtool.post_training.improve import improve
from qtool.post_training.kept import Keeper, Unit
from qtool.post_training.methods import Calibrated
from qtool.quantizers.calibrate import calibrate
from qtool.quantizers.control import in_float
from qtool.quantizers.layers import quant_layers
from tests.kit import float_net

FEW_BITS = {
    "weights": {"bits": 3, "range": "calibrated"},
    "activations": {"bits": 4, "range": "mse"},
}
LAYERS = ["conv1", "conv2", "fc"]
SHORT: dict[str, dict[str, int]] = {"gptq": {}, "adaround": {"iterations": 40, "places": 64}}
LONG = pytest.mark.slow  # what differs little from a case that always runs


def images(count: int = 48, seed: int = 1) -> Tensor:
    """Return images [B, 3, 8, 8] whose channels and places are correlated, as those of photos."""
    noise = torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(noise, 2, stride=1) * 2 + 0.5


def calibrated(
    settings: Mapping[str, object] = FEW_BITS, net: nn.Module | None = None
) -> nn.Module:
    """Return a prepared and calibrated model in evaluation mode."""
    if settings is FEW_BITS and net is None:
        return copy_of(_usual())
    return _prepared(settings, net or float_net())


@cache
def _usual() -> nn.Module:
    return _prepared(FEW_BITS, float_net())


def _prepared(settings: Mapping[str, object], net: nn.Module) -> nn.Module:
    model = qtool.prepare(net, settings, images())
    calibrate(model, [images()])
    return model.eval().requires_grad_(requires_grad=False)


def run(
    model: nn.Module, method: str, *, keep: Path | None = None, seed: int = 0, **more: int
) -> dict[str, Tensor]:
    """Improve a model; return its whole state."""
    given = calibrated_with(model, keep, seed)
    by_layer.METHODS[method](given, **{**SHORT[method], **more})
    return {k: v.clone() for k, v in model.state_dict().items() if isinstance(v, Tensor)}


def calibrated_with(model: nn.Module, keep: Path | None = None, seed: int = 0) -> Calibrated:
    batches = [qtool_inputs(images()[:32]), qtool_inputs(images()[32:])]
    return Calibrated(model, batches, seed, keep)


def qtool_inputs(batch: Tensor) -> Inputs:
    return Inputs((batch,))


@pytest.mark.parametrize("method", SHORT)
@pytest.mark.parametrize(
    "place",
    ["every_value", *(pytest.param(p, marks=LONG) for p in ("layer_inputs", "relu_outputs"))],
)
def test_outputs_come_nearer_to_those_of_the_float_network(method: str, place: str) -> None:
    settings = {**FEW_BITS, "activations": {"bits": 8, "range": "mse", "place": place}}
    model, x = calibrated(settings), images(seed=2)
    with in_float(model):
        expected = model(x)
    before = float((model(x) - expected).square().mean())
    rows = by_layer.METHODS[method](calibrated_with(model), **SHORT[method])
    expected_steps = [(name, step) for name in LAYERS for step in ("weight_scales", "rounding")]
    assert [(row.layer, row.step) for row in rows] == expected_steps
    for row in rows:
        assert row.error_before is not None
        assert row.error_after is not None
        assert row.error_after <= row.error_before
    assert float((model(x) - expected).square().mean()) < 0.9 * before


@pytest.mark.parametrize("method", SHORT)
@pytest.mark.parametrize(
    "weights",
    [
        pytest.param({"bits": 2, "grid": "ternary"}, marks=LONG),
        {"bits": 4, "grid": "full", "granularity": "per_tensor"},
        pytest.param({"bits": 1}, marks=LONG),
        pytest.param({"bits": 3, "grid": "mid_rise"}, marks=LONG),
        pytest.param({"bits": 8, "saturation": "avoid"}, marks=LONG),
    ],
    ids=str,
)
def test_codes_that_are_chosen_are_those_of_the_integer_model(
    method: str, weights: dict[str, object]
) -> None:
    model = calibrated({"weights": weights, "activations": {"bits": 8, "range": "mse"}})
    nearest = {name: codes_of(layer) for name, layer in quant_layers(model).items()}
    run(model, method)
    chosen = {name: codes_of(layer) for name, layer in quant_layers(model).items()}
    assert any(not torch.equal(nearest[name], chosen[name]) for name in LAYERS)
    integer = convert(model, [images()])  # with its proof
    for name, layer in integer_layers(integer).items():
        stored = layer.codes.float()
        same = (stored == chosen[name]) | (stored == -chosen[name])  # of a norm that turns round
        assert bool(same.flatten(1).all())


def test_fewer_steps_against_saturation_begin_at_the_codes_that_were_chosen() -> None:
    model = calibrated({"weights": {"bits": 8}, "activations": {"bits": 8, "range": "mse"}})
    run(model, "gptq")
    integer = convert(model, [images()], saturation="avoid")
    assert integer_layers(integer).keys() == set(LAYERS)


class Twice(nn.Module):
    """A layer that is called twice, in images of two sizes, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.idle = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return self.conv(x[:, :, ::2, ::2])


@pytest.mark.parametrize("method", SHORT)
def test_a_layer_may_be_called_often_or_never(method: str) -> None:
    torch.manual_seed(0)
    model = calibrated(net=Twice().eval())
    rows = by_layer.METHODS[method](calibrated_with(model), **SHORT[method])
    assert {row.layer for row in rows} == {"conv"}


def test_a_layer_that_reads_nothing_but_zeros_is_rounded_to_nearest() -> None:
    net = float_net()
    with torch.no_grad():
        net.bn1.weight.zero_()
        assert net.bn1.bias is not None
        net.bn1.bias.fill_(-1)
    model = calibrated(net=net)
    rows = {row.layer: row for row in by_layer.METHODS["gptq"](calibrated_with(model))}
    assert rows["conv2"].note == by_layer.SINGULAR
    quantizer = quant_layers(model)["conv2"].weight_quantizer
    assert quantizer is not None
    nearest = quantizer.on_grid.codes(net.conv2.weight.detach())
    assert torch.equal(codes_of(quant_layers(model)["conv2"]), nearest)


@pytest.mark.parametrize("method", SHORT)
def test_killed_and_started_again_it_ends_the_same(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(calibrated(), method)
    assert all(torch.equal(v, whole[k]) for k, v in run(calibrated(), method).items())
    keep = tmp_path / "model.rounding"
    added = Keeper.add

    class Killed(BaseException):
        pass

    def killed_after_two(self: Keeper, name: str, unit: Unit) -> None:
        added(self, name, unit)
        if len(self.units) == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "add", killed_after_two)
        with pytest.raises(Killed):
            run(calibrated(), method, keep=keep)
    assert keep.is_file()
    capsys.readouterr()
    again = run(calibrated(), method, keep=keep)
    said = capsys.readouterr().err
    assert "layer 3/3" in said
    assert "layer 2/3" not in said
    assert again.keys() == whole.keys()
    assert all(torch.equal(value, whole[key]) for key, value in again.items())
    assert not keep.exists()


def begun(keep: Path) -> None:
    """Leave a file of a first layer."""
    added = Keeper.add

    def killed(self: Keeper, name: str, unit: Unit) -> None:
        added(self, name, unit)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            run(calibrated(), "gptq", keep=keep)


@pytest.mark.parametrize(
    "other",
    ["seed", "damaged", *(pytest.param(o, marks=LONG) for o in ("network", "no such file"))],
)
def test_other_work_and_damaged_files_begin_anew_and_say_so(
    other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = tmp_path / "model.rounding"
    begun(keep)
    data = bytearray(keep.read_bytes())
    if other == "damaged":
        data[-1] ^= 1
    elif other == "no such file":
        data = data[:100]
    keep.write_bytes(data)
    capsys.readouterr()
    net = float_net(1 if other == "network" else 0)
    seed = 1 if other == "seed" else 0
    given = run(calibrated(net=net), "gptq", keep=keep, seed=seed)
    said = capsys.readouterr().err
    assert "beginning anew" in said
    assert "layer 1/3" in said
    expected = run(calibrated(net=net), "gptq", seed=seed)
    assert all(torch.equal(value, expected[key]) for key, value in given.items())


def test_improve_knows_the_methods() -> None:
    model = calibrated()
    done = improve(model, [images()], "gptq")
    assert done.method == "gptq"
    assert [row.layer for row in done.applied if row.step == "rounding"] == LAYERS
