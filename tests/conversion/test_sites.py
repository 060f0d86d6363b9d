"""Values that have quantizers of their own become codes, from the image to the last layer."""

import pickle
from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.conversion.biases import round_biases
from qtool.conversion.standing import Standing
from qtool.errors import ConversionError
from qtool.graph.sites.frames import sites_of
from qtool.integer import joins
from qtool.integer.converted import converted_state
from qtool.integer.file import load_integer, save_integer
from qtool.integer.layers import integer_layers
from qtool.limits import NO_LONGER_AFFINE, NO_LONGER_HARDSWISH, SHIFT_TOO_LARGE
from qtool.quantizers.door.deployed import prepared_state

SECTION = {
    "weights": {"bits": 4, "range": "absmax"},
    "activations": {"bits": 4, "place": "every_value"},
}
IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Every(nn.Module):
    """A join of each kind, [B, 3, 16, 16] to [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.down, self.alone = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(16)
        self.squeeze, self.gate = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.wide, self.smooth = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu6(x + self.conv1(x))
        x = torch.cat([F.relu(self.conv2(x)), self.down(x)], 1)
        x = F.relu(self.alone(x))
        pooled = F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        x = x * F.hardsigmoid(self.gate(pooled))
        x = F.silu(self.wide(F.avg_pool2d(x, 2)))
        x = F.hardswish(self.smooth(x))
        x = self.last(x) * torch.sigmoid(x)
        return self.fc(x.mean((2, 3)))


class Twice(nn.Module):
    """A sum that layers alone read, [B, 3, H, W] to [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.one(x) + self.other(x))).mean((2, 3))


class Shared(nn.Module):
    """A convolution whose results are rounded in two ways as they are, [B, 3, H, W] to [B, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.conv(x) + self.conv(x * x)
        return self.fc(F.relu(x).mean((2, 3)))


def prepared(net: nn.Module, section: dict = SECTION) -> nn.Module:
    """Return a net with lively norms, quantized and with biases as they are deployed."""
    torch.manual_seed(0)
    net.train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn_like(parameter) * (2 if parameter.ndim == 1 else 0.5))
        for _ in range(4):
            net(torch.randn(16, 3, 16, 16) * 2)
    model = qtool.prepare(net.eval(), section, IMAGES).eval()
    round_biases(model)
    return model


@pytest.fixture(scope="module")
def every() -> tuple[nn.Module, nn.Module]:
    """Return a prepared model with every kind of join, and its integer model."""
    model = prepared(Every())
    return model, qtool.convert(model)


def test_every_kind_of_join_computes_in_codes(every: tuple[nn.Module, nn.Module]) -> None:
    model, integer = every
    state = converted_state(integer)
    kinds = Counter(spec.kind for spec in state.sites if spec.kind != "passed")
    expected = ["add", "cat", "global_pool", "global_pool", "mul", "mul", "silu", "hardswish"]
    assert kinds == Counter([*expected, "sigmoid", "depthwise", "depthwise", "rounded"])
    placed = prepared_state(model).placement.sites
    assert state.proof is not None
    assert state.proof.sites_compared == len(placed)
    assert state.proof.layers_compared == 10
    assert not state.float_sites
    assert not state.not_folded
    with torch.no_grad():
        assert torch.allclose(model(IMAGES), integer(IMAGES), atol=1e-5)


def test_values_between_joins_lie_on_the_grids_that_the_model_says(
    every: tuple[nn.Module, nn.Module],
) -> None:
    _, integer = every
    for name, layer in integer_layers(integer).items():
        if name == "fc":
            assert layer.spec.output_bits is None
            continue
        shape = (2, layer.spec.shape[1] * getattr(layer, "groups", 1), 4, 4)
        y = layer(torch.randn(shape) * 9) / layer.output_scale + layer.output_zero_point
        assert torch.allclose(y, y.round(), atol=1e-4, rtol=0)
        assert layer.spec.output.qmin <= y.round().min()
        assert y.round().max() <= layer.spec.output.qmax
    assert integer.get_submodule("conv2").spec.output_bottom is not None  # beside negative values
    assert all(s.spec.kind == "passed" or s.spec.bits in (4, 8) for s in sites_of(integer).values())


def test_a_hardsigmoid_is_a_part_of_the_layer_before_it(
    every: tuple[nn.Module, nn.Module],
) -> None:
    model, integer = every
    gate, source = integer.get_submodule("gate"), model.get_submodule("gate")
    assert gate.spec.output_gate == "hardsigmoid"
    assert torch.allclose(gate.real_weight() * 6, source.weight_quantizer(source.weight))
    assert torch.allclose(gate.real_bias(), source.bias / 6 + 0.5, atol=1e-6)
    assert float(gate.output_scale) == pytest.approx(1 / 255)


def test_a_file_holds_what_stands_at_sites(
    every: tuple[nn.Module, nn.Module], tmp_path: Path
) -> None:
    _, integer = every
    path = tmp_path / "integer.safetensors"
    save_integer(integer, path, {"recipe": {}})
    loaded = load_integer(path, Every())
    assert converted_state(loaded).sites == converted_state(integer).sites
    assert list(loaded.state_dict()) == list(integer.state_dict())
    for images in (IMAGES, torch.randn(5, 3, 24, 20)):
        assert torch.equal(loaded(images), integer(images))
    assert torch.equal(deepcopy(loaded)(IMAGES), integer(IMAGES))
    assert torch.equal(pickle.loads(pickle.dumps(loaded))(IMAGES), integer(IMAGES))


def test_a_layer_that_is_called_twice_is_rounded_where_it_is_called() -> None:
    model = prepared(Shared())
    integer = qtool.convert(model)
    state = converted_state(integer)
    rounded = [str(spec.site) for spec in state.sites if spec.kind == "rounded"]
    assert {":conv2d1", ":conv2d2"} <= set(rounded)
    with torch.no_grad():
        assert torch.allclose(model(IMAGES), integer(IMAGES), atol=1e-5)


COARSE = {
    "ceil": {"bits": 4, "rounding": "ceil"},
    "two levels": {"bits": 1, "grid": "mid_rise"},
    "a zero point": {"bits": 3, "grid": "asymmetric", "range": "ema_min_max"},
}


@pytest.mark.parametrize("name", COARSE)
def test_values_that_are_rounded_in_other_ways_convert(name: str) -> None:
    activations = {"place": "every_value", **COARSE[name]}
    if name == "ceil":
        made = qtool.convert(prepared(Twice(), SECTION | {"activations": activations}))
        assert [s.kind for s in converted_state(made).sites].count("add") == 1
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)]
    net = nn.Sequential(*layers, nn.Conv2d(6, 5, 3), nn.AvgPool2d(2), nn.Conv2d(5, 3, 1))
    model = prepared(net, {"weights": {"bits": 4, "range": "absmax"}, "activations": activations})
    integer = qtool.convert(model)
    assert converted_state(integer).proof.sites_compared == 5
    with torch.no_grad():  # where many values lie at thresholds, some of them get neighbours
        apart = (model(IMAGES) - integer(IMAGES)).abs() > 1e-4
    assert apart.float().mean() < 0.1
    assert name == "ceil" or not apart.any()


def no_statistics(model: nn.Module) -> None:
    model.get_submodule("alone").running_mean, model.get_submodule("alone").running_var = None, None


def large_shift(model: nn.Module) -> None:
    model.get_submodule("alone").running_mean[0] = 2e7


def other_scale(model: nn.Module) -> None:
    stand = model.get_submodule("sites").get_submodule("conv2d7")
    stand.scale.mul_(1.01)


BROKEN = {
    "affine": (no_statistics, ":batch_norm1", NO_LONGER_AFFINE, "no longer a gain and a shift"),
    "shift": (large_shift, ":batch_norm1", SHIFT_TOO_LARGE, "its shift does not fit into int32"),
    "hardswish": (other_scale, ":hardswish0", NO_LONGER_HARDSWISH, "hardsigmoid is no clip"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_join_that_no_longer_is_one_stays_float_and_is_rounded(name: str) -> None:
    change, site, limit, words = BROKEN[name]
    model = prepared(Every())
    change(model)
    integer = qtool.convert(model)
    state = converted_state(integer)
    assert limit.fits(state.float_sites[site])
    assert words in state.float_sites[site]
    assert any(site in note and "stays float" in note for note in state.notes)
    after = {str(spec.site): spec.kind for spec in state.sites}
    assert after[":relu2" if site == ":batch_norm1" else site] == "rounded"
    with torch.no_grad():
        assert torch.allclose(model(IMAGES), integer(IMAGES), atol=1e-4)


@pytest.mark.parametrize("join", ["IntegerAdd", "IntegerSilu", "IntegerNorm"])
def test_the_proof_finds_a_join_that_is_off_by_a_step(
    join: str, monkeypatch: pytest.MonkeyPatch, every: tuple[nn.Module, nn.Module]
) -> None:
    kind = getattr(joins, join)
    right = kind.at
    monkeypatch.setattr(kind, "at", lambda self, *call: right(self, *call) + self.output.step)
    with pytest.raises(ConversionError, match=r":\w+\d: the integer model rounds"):
        qtool.convert(every[0])


def test_the_proof_finds_a_layer_whose_output_is_off_by_a_step(
    monkeypatch: pytest.MonkeyPatch, every: tuple[nn.Module, nn.Module]
) -> None:
    right = Standing.scale_and_zero

    def shifted(self: Standing, site: str) -> tuple[Tensor, Tensor]:
        scale, zero = right(self, site)
        return scale, zero + 1

    monkeypatch.setattr(Standing, "scale_and_zero", shifted)
    with pytest.raises(ConversionError, match="rounds"):
        qtool.convert(every[0])


@pytest.mark.parametrize("function", [F.silu, F.hardswish, F.hardsigmoid, torch.sigmoid, F.gelu])
def test_a_function_of_a_float_layer_is_the_float_function_rounded(function) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(function(self.first(x))).mean((2, 3))

    torch.manual_seed(0)
    changes = {
        "activations": {"bits": 8, "place": "every_value"},
        "overrides": [{"match": "first", "weights": None, "activations": None}],
    }
    prepared = qtool.prepare(Net(), SECTION | changes, example=3 * IMAGES).eval()
    integer, given = qtool.convert(prepared), []
    integer.second.register_forward_pre_hook(lambda layer, args: given.append(args[0]))
    with torch.no_grad():
        integer(IMAGES)
        exact = function(integer.first(IMAGES))
    rounded = given[0]
    step = rounded.unique().diff().min()
    inside = (exact > rounded.min()) & (exact < rounded.max())
    assert len(rounded.unique()) <= 256
    assert bool(((rounded - exact).abs() <= 0.501 * step)[inside].all())
    assert float(inside.double().mean()) > 0.3


class Branches(nn.Module):
    """Branches that are added up by sum(), and one that may be missing, [B, 3, H, W] to [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.one, self.two, self.fc = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = sum([self.wide(x), self.one(x), x]).relu()
        missing = 0
        out = self.two(x) + missing
        out += self.one(x)
        return self.fc(out.mean((2, 3)))


def test_a_sum_with_the_number_0_is_no_sum() -> None:
    torch.manual_seed(0)
    prepared = qtool.prepare(Branches(), SECTION, example=IMAGES).eval()
    placement = prepared_state(prepared).placement
    assert placement.float_joins == placement.without_quantizer == {}
    kinds = Counter(join.kind for join in placement.joins.values())
    assert kinds == {"add": 3, "global_pool": 1}  # of five calls of additions
    round_biases(prepared)
    with torch.no_grad():
        expected, given = prepared(IMAGES), qtool.convert(prepared)(IMAGES)
    assert torch.allclose(given, expected, atol=1e-5)
