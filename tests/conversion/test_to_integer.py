"""The integer model says what the fake-quantized one says, and holds only integers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import qtool
from qtool.conversion import parts
from qtool.conversion.biases import round_biases
from qtool.conversion.proof import prove
from qtool.errors import ConversionError, InputError
from qtool.graph.inputs import Inputs
from qtool.integer.file import load_integer, read_about, save_integer
from qtool.integer.layers import EXACT_FLOAT32, integer_layers
from qtool.numerics.grid import IntegerGrid
from qtool.quantizers.control import set_progress
from qtool.quantizers.layers import quant_layers
from tests.kit import float_net

IMAGES = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
WIDTHS = [(1, "narrow"), (2, "narrow"), (3, "full"), (3, "mid_rise"), (4, "narrow"), (8, "narrow")]


def quantization(bits=4, grid="narrow", activations=4, **weights):
    return {
        "weights": {"bits": bits, "grid": grid, **weights},
        "activations": {"bits": activations, "place": "layer_inputs"},
    }


def prepared(section=None, net=None):
    return qtool.prepare(net or float_net(), section or quantization(), IMAGES).eval()


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_codes_are_members_of_their_grid_and_fit_its_width(bits, grid, granularity):
    integer = qtool.convert(prepared(quantization(bits, grid, granularity=granularity)))

    for layer in integer_layers(integer).values():
        allowed = IntegerGrid(bits, "mid_rise" if bits == 1 else grid)
        members = range(allowed.code_min, allowed.code_max + 1, allowed.code_step)
        assert set(layer.codes.unique().tolist()) <= set(members)
        assert len(members) <= 2**bits
        assert layer.codes.dtype == torch.int8


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
def test_codes_times_scale_are_the_fake_quantized_weights_up_to_the_folded_sign(bits, grid):
    model = prepared(quantization(bits, grid))
    layer = integer_layers(qtool.convert(model))["conv1"]
    assert layer.spec.batch_norm == "bn1"
    gain = model.bn1.weight / torch.sqrt(model.bn1.running_var + model.bn1.eps)
    expected = model.conv1.weight_quantizer(model.conv1.weight) * gain.reshape(-1, 1, 1, 1)

    torch.testing.assert_close(layer.real_weight(), expected.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
def test_a_model_with_rounded_biases_loses_nothing_when_it_is_converted(bits, grid):
    model = prepared(quantization(bits, grid))
    round_biases(model)
    with torch.no_grad():
        expected, given = model(IMAGES), qtool.convert(model)(IMAGES)

    torch.testing.assert_close(given, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


def test_rounding_the_biases_twice_changes_nothing_more():
    model = prepared()
    round_biases(model)
    once = copy.deepcopy(model.state_dict())
    round_biases(model)

    for name in ("bn1.bias", "bn2.bias", "fc.bias"):
        torch.testing.assert_close(model.state_dict()[name], once[name], rtol=1e-6, atol=1e-7)
    integer = qtool.convert(model)
    steps = integer_layers(integer)["conv2"].bias_scale
    assert (steps > 0).all()


def test_rounding_moves_a_bias_by_at_most_half_a_step():
    model = prepared()
    before = model.bn2.bias.detach().clone()
    steps = integer_layers(qtool.convert(model))["conv2"].bias_scale
    round_biases(model)
    moved = (model.bn2.bias.detach() - before).abs()

    assert (moved <= steps * 0.5001).all()
    assert (moved > 0).any()


def test_an_integer_layer_computes_what_plain_integers_compute():
    layer = integer_layers(qtool.convert(prepared()))["conv1"]
    scale, grid = layer.input_scale.numpy(), layer.spec.input
    q = np.clip(np.round(IMAGES.numpy() / scale), grid.qmin, grid.qmax).astype(np.int64)
    padded = np.pad(q, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    total = np.einsum("bchwij,ocij->bohw", windows, layer.codes.numpy().astype(np.int64))
    total += layer.bias.numpy().astype(np.int64).reshape(-1, 1, 1)
    expected = total.astype(np.float32) * layer.bias_scale.numpy().reshape(-1, 1, 1)

    np.testing.assert_array_equal(layer(IMAGES).numpy(), expected)


def test_sums_beyond_float32_are_still_exact():
    net = nn.Sequential(nn.Linear(5000, 4, bias=False))
    nn.init.ones_(net[0].weight)
    x = torch.full((1, 5000), 1e6)
    section = quantization(8, activations=8, range="absmax")
    layer = integer_layers(qtool.convert(qtool.prepare(net, section, x / 1e9).eval()))["0"]

    assert layer.largest_sum() > EXACT_FLOAT32
    assert torch.equal(layer(x), (127 * 255 * 5000 * layer.bias_scale).unsqueeze(0))


@pytest.mark.parametrize("activations", ["full", "narrow", "asymmetric"])
def test_signed_and_asymmetric_inputs_convert(activations):
    section = quantization()
    section["activations"] = {"bits": 4, "grid": activations, "range": "ema_min_max"}
    model = prepared(section)
    round_biases(model)
    integer = qtool.convert(model)
    with torch.no_grad():
        torch.testing.assert_close(integer(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)


def test_a_full_grid_with_a_negative_gamma_keeps_its_batch_norm_and_says_so():
    net = float_net()
    with torch.no_grad():
        net.bn1.weight.copy_(-net.bn1.weight.abs())
        net.conv1.weight[0, 0, 0, 0] = -10.0
    integer = qtool.convert(prepared(quantization(4, "full", range="absmax"), net))

    # absmax puts -10 at -7 on this grid; push one weight to -8 by a learned scale instead
    model = prepared(quantization(4, "full"), net)
    model.conv1.weight_quantizer.scale.data.fill_(0.5)
    integer = qtool.convert(model)
    layer = integer_layers(integer)["conv1"]
    assert int(layer.codes.min()) == -8
    assert layer.spec.batch_norm is None
    assert "negative gamma" in layer.spec.unfused
    assert isinstance(integer.bn1, nn.BatchNorm2d)
    assert any("grid: narrow" in note for note in integer.qtool.notes)
    with torch.no_grad():
        assert torch.isfinite(integer(IMAGES)).all()


def test_a_dead_channel_becomes_its_bias_alone():
    net = float_net()
    with torch.no_grad():
        net.bn1.weight[2] = 0.0
    model = prepared(net=net)
    layer = integer_layers(qtool.convert(model))["conv1"]

    assert not layer.codes[2].any()
    assert layer.spec.rewritten == 1
    assert (layer.weight_scale > 0).all()
    beta = model.bn1.bias.detach()[2]
    torch.testing.assert_close(layer.real_bias()[2], beta, rtol=1e-6, atol=0)
    torch.testing.assert_close(layer(IMAGES)[:, 2].mean(), beta, rtol=1e-6, atol=0)


@pytest.mark.parametrize("beta", [0.0, 0.7, -0.7, 1e-30])
def test_a_dead_channel_gives_its_bias_whatever_that_is(beta):
    net = float_net()
    with torch.no_grad():
        net.bn1.weight[2], net.bn1.bias[2] = 0.0, beta
    layer = integer_layers(qtool.convert(prepared(net=net)))["conv1"]

    assert layer.spec.bias == "int32"
    assert layer.weight_scale[2] > 0
    given = layer(IMAGES)[:, 2]
    torch.testing.assert_close(given, torch.full_like(given, beta), rtol=1e-6, atol=1e-12)


def test_a_bias_too_large_for_int32_stays_float_and_is_listed():
    net, section = float_net(), quantization(activations=8, range="absmax")
    nn.init.ones_(net.conv1.weight)  # every code is 7, so that the weights do matter
    steps = integer_layers(qtool.convert(prepared(section, net)))["conv1"].bias_scale
    with torch.no_grad():
        net.bn1.bias.copy_(steps * 2**31 * 1.05)
    layer = integer_layers(qtool.convert(prepared(section, net)))["conv1"]

    assert layer.spec.bias == "float32"
    assert "int32" in layer.spec.unfused
    assert layer.spec.rewritten == 0


@pytest.mark.parametrize(("share", "kept"), [(0.9, "int32"), (1.1, "float32")])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("inputs", "grid"), [(1.0, "unsigned"), (-1.0, "asymmetric")])
def test_a_bias_leaves_room_in_int32_for_all_products(share, kept, sign, inputs, grid):
    net = nn.Sequential(nn.Linear(40_000, 1))
    nn.init.ones_(net[0].weight)
    nn.init.zeros_(net[0].bias)
    section = quantization(8, range="absmax")
    section["activations"] = {"bits": 8, "grid": grid, "range": "ema_min_max"}
    x = torch.full((1, 40_000), inputs)
    step = integer_layers(qtool.convert(qtool.prepare(net, section, x).eval()))["0"].bias_scale
    products = 40_000 * 127 * 255  # more than half of what int32 holds
    with torch.no_grad():
        net[0].bias.copy_(sign * step * (2**31 - 1 - products / share))
    layer = integer_layers(qtool.convert(qtool.prepare(net, section, x).eval()))["0"]

    assert layer.spec.bias == kept
    assert ("int32" in layer.spec.unfused) == (kept == "float32")


@pytest.mark.parametrize("beside", [{}, {"estimator": "straight_through"}], ids=["", "estimator"])
def test_a_blend_that_is_not_done_is_refused_by_name(beside):
    blend = {"name": "cubic", "start": 0.0, "stop": 1.0, "window": [0.0, 0.8]}
    model = prepared(quantization(range="absmax", blend=blend, **beside))
    set_progress(model, 0.5)
    with pytest.raises(ConversionError, match=r"conv1\.weight_quantizer \(alpha 0\.9"):
        qtool.convert(model)

    set_progress(model, 0.8)
    assert integer_layers(qtool.convert(model))


@pytest.mark.parametrize(
    ("alpha", "said"), [(0.999, "alpha 0.999"), (1 - 2.0**-24, "alpha just below 1")]
)
def test_every_layer_whose_alpha_is_not_quite_one_is_named(alpha, said):
    blend = {"name": "piecewise", "values": [alpha, 1.0], "at": [0.8]}
    model = prepared(quantization(range="absmax", blend=blend))
    set_progress(model, 0.5)
    with pytest.raises(ConversionError) as caught:
        qtool.convert(model)

    for layer in ("conv1", "conv2", "fc"):
        assert f"{layer}.weight_quantizer ({said})" in str(caught.value)


def test_a_search_that_nothing_has_asked_for_yet_is_made_before_converting():
    section = {"weights": {"bits": 4, "range": "ppq"}}
    late, early = (qtool.prepare(float_net(), section, IMAGES).eval() for _ in range(2))
    for layer in quant_layers(late).values():
        layer.weight_quantizer.ready = False
        layer.weight_quantizer.scale.fill_(1.0)
    pairs = [integer_layers(qtool.convert(model)) for model in (late, early)]

    for name, layer in pairs[0].items():
        assert torch.equal(layer.weight_scale, pairs[1][name].weight_scale)
        assert torch.equal(layer.codes, pairs[1][name].codes)


def test_a_range_that_no_data_has_set_is_refused_by_name():
    model = qtool.prepare(float_net(), quantization())

    with pytest.raises(ConversionError, match=r"conv1\.input_quantizer"):
        qtool.convert(model)


def test_a_model_that_was_not_prepared_is_a_programmers_error():
    with pytest.raises(ValueError, match=r"qtool\.prepare"):
        qtool.convert(float_net())


@pytest.mark.parametrize("side", ["weights", "activations"])
def test_a_side_left_float_takes_part_as_it_is(side):
    section = quantization()
    section[side] = None
    model = prepared(section)
    integer = qtool.convert(model)
    with torch.no_grad():
        torch.testing.assert_close(integer(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)
    assert all("is float" in layer.spec.unfused for layer in integer_layers(integer).values())


def test_the_latent_weights_are_gone():
    integer = qtool.convert(prepared())

    assert not list(integer.parameters())
    assert not [name for name in integer.state_dict() if "quantizer" in name or "bn" in name]


def test_the_proof_catches_a_wrong_fold(monkeypatch):
    right = parts.fold_batch_norm

    def wrong(scale, bias, norm):
        folded = right(scale, bias, norm)
        return type(folded)(folded.sign, folded.scale * 1.01, folded.bias)

    monkeypatch.setattr(parts, "fold_batch_norm", wrong)
    with pytest.raises(ConversionError, match="conv1: the integer layer's output differs"):
        qtool.convert(prepared())


@pytest.mark.parametrize("grid", ["narrow", "mid_rise"])
@torch.no_grad()
def test_the_proof_catches_codes_off_their_grid_where_no_output_tells(grid):
    model = prepared(quantization(3, grid))
    round_biases(model)
    integer = qtool.convert(model)
    prove(model, integer, [Inputs.of(IMAGES)], [])
    layer = integer_layers(integer)["conv2"]
    layer.codes *= 3  # odd codes stay odd
    layer.bias *= 3
    layer.weight_scale /= 3

    torch.testing.assert_close(integer(IMAGES), qtool.convert(model)(IMAGES))
    with pytest.raises(ConversionError, match="conv2: a code lies outside its grid"):
        prove(model, integer, [Inputs.of(IMAGES)], [])


def test_a_saved_integer_model_comes_back_bit_for_bit(tmp_path):
    integer = qtool.convert(prepared())
    save_integer(integer, tmp_path / "m.safetensors", {"recipe": {"seed": 3}})
    about, state = read_about(tmp_path / "m.safetensors")
    again = load_integer(tmp_path / "m.safetensors", float_net(seed=9))

    assert about == {"recipe": {"seed": 3}}
    assert state.layers == integer.qtool.layers
    assert torch.equal(again(IMAGES), integer(IMAGES))


@pytest.mark.parametrize(
    "content", [b"", b"not safetensors at all", b"\x08" + 7 * b"\x00" + b"{}      "]
)
def test_a_file_that_is_no_integer_model_is_an_input_error(tmp_path, content):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)

    with pytest.raises(InputError, match="integer model"):
        read_about(path)


def test_an_integer_model_of_another_network_is_an_input_error(tmp_path):
    save_integer(qtool.convert(prepared()), tmp_path / "m.safetensors", {})

    with pytest.raises(InputError, match="do not fit"):
        load_integer(tmp_path / "m.safetensors", nn.Sequential(nn.Conv2d(3, 8, 3)))
