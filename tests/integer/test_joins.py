"""Joins and layers compute what ONNX Runtime's kernels compute, code for code, also in ties."""

from collections.abc import Callable, Sequence

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.graph.sites.call_sites import CallSite
from qtool.integer.at_site import AtSite
from qtool.integer.joins import at_site
from qtool.integer.layers import IntegerConv2d, LayerSpec
from qtool.integer.site_specs import SiteGrid, SiteKind, SiteSpec
from qtool.numerics.grid import Kind

SCALES = {
    "unrelated": (0.0231, 0.0417, 0.0513),
    "equal": (0.0231, 0.0231, 0.0231),
    "ratios 1, 2, 4": (0.0231, 0.0462, 0.0924),
}
ZEROS = [(128, 128, 128), (0, 131, 0), (77, 3, 101)]  # of both operands and the result
FLOAT, CODES, INT8 = np.float32, np.uint8, np.int8


def kernel(operator: str, inputs: Sequence[object], domain: str = "", **attributes: object):
    """Return what an integer kernel of ONNX Runtime gives for uint8 operands and constants."""
    arrays = {f"i{n}": np.asarray(value) for n, value in enumerate(inputs)}
    fed = {n: a for n, a in arrays.items() if a.ndim > 1 and a.dtype == CODES}
    given = [helper.make_tensor_value_info(n, TensorProto.UINT8, a.shape) for n, a in fed.items()]
    held = [numpy_helper.from_array(a, n) for n, a in arrays.items() if n not in fed]
    node = helper.make_node(operator, list(arrays), ["y"], domain=domain, **attributes)
    made = [helper.make_tensor_value_info("y", TensorProto.UINT8, None)]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(
        helper.make_graph([node], "g", given, made, held), opset_imports=opsets, ir_version=10
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, fed)[0].astype(np.int64))


def join(
    kind: SiteKind,
    inputs: Sequence[tuple[float, int]],
    output: tuple[float, int],
    *,
    grid: Kind = "asymmetric",
    **facts: object,
) -> AtSite:
    """Return a join of 8-bit operands and result, each with its scale and zero point."""
    site = CallSite("", "add", 0)
    operands = [SiteGrid(f":input{n}", 8, grid) for n in range(len(inputs))]
    norm = str(facts.pop("norm", ""))
    made = at_site(SiteSpec(site, kind, SiteGrid(str(site), 8, grid), operands, norm, facts))
    for place, (scale, zero) in enumerate(inputs):
        made.input_scales[place], made.input_zero_points[place] = scale, zero
    made.scale.fill_(output[0])
    made.zero_point.fill_(output[1])
    return made


def codes_of(made: AtSite, function: Callable[..., Tensor], *codes: np.ndarray, **kwargs) -> Tensor:
    """Return the codes that a join makes of the codes of its operands."""
    values = [
        given.values(torch.from_numpy(c).float())
        for given, c in zip(made.inputs, codes, strict=True)
    ]
    args = (values,) if function is torch.cat else tuple(values)
    y = made.at(function, args, kwargs)
    assert isinstance(y, Tensor)
    assert y.dtype == torch.float32
    return made.output.codes(y).long()


def some(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape).astype(CODES)


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("ratios", SCALES)
@pytest.mark.parametrize("name", ["add", "mul"])
def test_of_two_operands_no_code_is_off(name: SiteKind, ratios: str, zeros: tuple[int]) -> None:
    scales = SCALES[ratios]
    a, b = some(2, 64, 28, 28), some(2, 64, 28, 28)[::-1].copy()
    pairs = list(zip(scales, zeros, strict=True))
    of_kernel = [v for s, z in pairs for v in (FLOAT(s), CODES(z))]
    expected = kernel(
        "QLinearAdd" if name == "add" else "QLinearMul",
        [a, *of_kernel[:2], b, *of_kernel[2:4], *of_kernel[4:]],
        "com.microsoft",
    )
    made = join(name, pairs[:2], pairs[2])
    assert torch.equal(codes_of(made, getattr(torch, name), a, b), expected)


@pytest.mark.parametrize("kind", ["asymmetric", "full"])
@pytest.mark.parametrize("name", ["add", "mul"])
def test_of_two_operands_no_pair_of_codes_is_off(name: SiteKind, kind: Kind) -> None:
    """All pairs of codes at scales whose results lie within float32's last bits of a half."""
    random = np.random.default_rng(5)
    a, b = (codes.astype(CODES).reshape(256, 256) for codes in np.divmod(np.arange(65536), 256))
    origin = 128 if kind == "full" else 0
    operator = "QLinearAdd" if name == "add" else "QLinearMul"
    for _ in range(20):
        scales = random.uniform(0.001, 0.1, 3)
        zeros = [origin] * 3 if origin else random.integers(0, 256, 3)
        pairs = [(float(FLOAT(s)), int(z) - origin) for s, z in zip(scales, zeros, strict=True)]
        of_kernel = [v for s, z in pairs for v in (FLOAT(s), CODES(z + origin))]
        inputs = [a, *of_kernel[:2], b, *of_kernel[2:4], *of_kernel[4:]]
        made = join(name, pairs[:2], pairs[2], grid=kind)
        given = [codes.astype(np.int16) - origin for codes in (a, b)]
        codes = codes_of(made, getattr(torch, name), *given) + origin
        assert torch.equal(codes, kernel(operator, inputs, "com.microsoft"))


def test_a_product_broadcasts_over_the_image() -> None:
    a, b = some(2, 64, 28, 28), some(2, 64, 1, 1)
    inputs = [a, FLOAT(0.02), CODES(128), b, FLOAT(1 / 255), CODES(0), FLOAT(0.01), CODES(127)]
    expected = kernel("QLinearMul", inputs, "com.microsoft")
    made = join("mul", [(0.02, 128), (1 / 255, 0)], (0.01, 127))
    assert torch.equal(codes_of(made, torch.mul, a, b), expected)


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("ratios", SCALES)
def test_of_a_mean_over_the_image_no_code_is_off(ratios: str, zeros: tuple[int, int, int]) -> None:
    (s, _, s_y), (z, _, z_y) = SCALES[ratios], zeros
    x = some(200, 512, 7, 7)  # 102,400 means
    inputs = [x, FLOAT(s), CODES(z), FLOAT(s_y), CODES(z_y)]
    expected = kernel("QLinearGlobalAveragePool", inputs, "com.microsoft", channels_last=0)
    made = join("global_pool", [(s, z)], (s_y, z_y))
    assert torch.equal(codes_of(made, torch.mean, x, dim=(2, 3)), expected.flatten(1))
    assert torch.equal(codes_of(made, F.adaptive_avg_pool2d, x, output_size=1), expected)


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("ratios", SCALES)
def test_average_pooling_is_a_depthwise_convolution(
    ratios: str, zeros: tuple[int, int, int]
) -> None:
    (s, _, s_y), (z, _, z_y) = SCALES[ratios], zeros
    x = some(8, 64, 32, 32)
    size = {"kernel": 2, "stride": 2, "padding": (1, 1)}
    weight = [np.ones((64, 1, 2, 2), INT8), np.full(64, 0.25, FLOAT), np.zeros(64, INT8)]
    inputs = [x, FLOAT(s), CODES(z), *weight, FLOAT(s_y), CODES(z_y)]
    shape = {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1] * 4}
    expected = kernel("QLinearConv", inputs, group=64, **shape)
    made = join("depthwise", [(s, z)], (s_y, z_y), **size)
    pooled = codes_of(made, F.avg_pool2d, x, kernel_size=2, stride=2, padding=1)
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize("zeros", ZEROS)
@pytest.mark.parametrize("ratios", SCALES)
def test_a_norm_is_a_depthwise_convolution(ratios: str, zeros: tuple[int, int, int]) -> None:
    (s, _, s_y), (z, _, z_y) = SCALES[ratios], zeros
    x, random = some(8, 64, 14, 14), np.random.default_rng(1)
    codes = random.choice([-127, 127, 1], 64).astype(INT8)
    scales = (FLOAT(0.5) ** random.integers(6, 9, 64)).astype(FLOAT)  # many ties
    bias = random.integers(-9000, 9000, 64).astype(np.int32)
    weight = [codes.reshape(64, 1, 1, 1), scales, np.zeros(64, INT8)]
    inputs = [x, FLOAT(s), CODES(z), *weight, FLOAT(s_y), CODES(z_y), bias]
    expected = kernel("QLinearConv", inputs, group=64, kernel_shape=[1, 1])
    made = join("depthwise", [(s, z)], (s_y, z_y), norm="bn", channels=64)
    for name, values in (("codes", codes), ("weight_scale", scales), ("bias", bias)):
        getattr(made, name).copy_(torch.from_numpy(values))
    assert torch.equal(codes_of(made, nn.BatchNorm2d(64).eval(), x), expected)


@pytest.mark.parametrize("zero", [0, 128, 77])
@pytest.mark.parametrize("scale", [0.003, 0.0231, 0.0307, 0.1])
def test_a_sigmoid_and_a_silu_are_those_of_the_kernels(scale: float, zero: int) -> None:
    x = np.arange(256, dtype=CODES)[None]
    gate = [FLOAT(1 / 255), CODES(0)]
    sigmoid = kernel("QLinearSigmoid", [x, FLOAT(scale), CODES(zero), *gate], "com.microsoft")
    made = join("sigmoid", [(scale, zero)], (1 / 255, 0))
    assert torch.equal(codes_of(made, torch.sigmoid, x), sigmoid)
    inputs = [x, FLOAT(scale), CODES(zero), sigmoid.numpy().astype(CODES), *gate]
    silu = kernel("QLinearMul", [*inputs, FLOAT(0.02), CODES(31)], "com.microsoft")
    made = join("silu", [(scale, zero)], (0.02, 31))
    assert torch.equal(codes_of(made, F.silu, x), silu)


@pytest.mark.parametrize("k", [36, 101, 127])
def test_a_hardswish_is_the_kernels_product_and_the_function(k: int) -> None:
    x = np.arange(256, dtype=CODES)[None]
    gate = [np.minimum(x, 2 * k).astype(CODES), FLOAT(1 / (2 * k)), CODES(0)]
    inputs = [x, FLOAT(3 / k), CODES(k), *gate, FLOAT(0.0213), CODES(19)]
    expected = kernel("QLinearMul", inputs, "com.microsoft")
    made = join("hardswish", [(3 / k, k)], (0.0213, 19))
    given = codes_of(made, F.hardswish, x)
    assert torch.equal(given, expected)
    real = F.hardswish(made.inputs[0].values(torch.from_numpy(x).float()))
    apart = (made.output.values(given.float()) - real).abs()[real < 0.0213 * 230]
    assert float(apart.max()) <= 0.0213 / 2 * 1.0001


def test_a_concatenation_keeps_codes() -> None:
    a, b = some(2, 8, 5, 5), some(2, 3, 5, 5)
    made = join("cat", [(0.0231, 77)] * 2, (0.0231, 77), dim=1)
    expected = torch.from_numpy(np.concatenate([a, b], 1)).long()
    assert torch.equal(codes_of(made, torch.cat, a, b, dim=1), expected)


def test_a_result_saturates_at_the_clip_and_at_its_own_bits() -> None:
    made = at_site(
        SiteSpec(CallSite("", "clip", 0), "rounded", SiteGrid(":clip0", 4, "unsigned", top=11))
    )
    made.scale.fill_(0.5)
    x = torch.tensor([-3.0, 0.25, 0.75, 5.2, 5.6, 100.0])
    y = made.at(lambda t: F.hardtanh(t, 0, 6), (x,), {})
    assert torch.equal(y, torch.tensor([0.0, 0.0, 1.0, 5.0, 5.5, 5.5]))


def test_a_rectified_result_ends_at_the_zero_point_of_a_grid_that_reaches_below() -> None:
    grid = SiteGrid(":relu0", 8, "asymmetric", bottom=100)
    made = at_site(SiteSpec(CallSite("", "relu", 0), "rounded", grid))
    made.scale.fill_(0.5)
    made.zero_point.fill_(100)
    x = torch.tensor([-3.0, 0.3, 100.0])
    assert torch.equal(made(x), torch.tensor([0.0, 0.5, 77.5]))


def test_a_concatenation_rounds_operands_of_another_grid_as_the_kernel_does() -> None:
    a, b = some(2, 8, 30, 30), some(2, 3, 30, 30)
    first, second = [FLOAT(0.0231), CODES(77)], [FLOAT(1 / 255), CODES(0)]
    inputs = [*first, a, *first, b, *second]
    expected = kernel("QLinearConcat", inputs, "com.microsoft", axis=1)
    made = join("cat", [(0.0231, 77), (1 / 255, 0)], (0.0231, 77), dim=1)
    assert torch.equal(codes_of(made, torch.cat, a, b, dim=1), expected)


def test_what_was_absorbed_returns_its_argument() -> None:
    x = torch.tensor([-1.0, 2.0])
    made = at_site(SiteSpec(CallSite("", "relu", 0), "passed"))
    assert made.at(F.relu, (x,), {}) is x
    assert not made.state_dict()


def layer(bias: str, output: tuple[str, int], top: int | None = None) -> IntegerConv2d:
    """Return a 3x3 convolution of 16 channels, 4-bit weights and 8-bit inputs, at random codes."""
    spec = LayerSpec(
        name="conv",
        kind="Conv2d",
        shape=[16, 16, 3, 3],
        bias=bias,
        weight_bits=4,
        weight_grid="narrow",
        input_bits=8,
        input_grid="asymmetric",
        output_bits=output[1],
        output_grid=output[0],
        output_top=top,
    )
    made, random = IntegerConv2d(spec, nn.Conv2d(16, 16, 3, padding=1)), np.random.default_rng(2)
    made.codes.copy_(torch.from_numpy(random.integers(-7, 8, made.codes.shape)))
    made.weight_scale = torch.from_numpy(FLOAT(0.5) ** random.integers(5, 8, 16)).float()
    made.bias = torch.from_numpy(random.integers(-900, 900, 16)).to(made.bias.dtype)
    made.input_zero_point.fill_(77)
    return made


@pytest.mark.parametrize("zero", [0, 101, 128])
@pytest.mark.parametrize("ratios", SCALES)
def test_a_layer_rounds_its_output_as_the_kernel_does(ratios: str, zero: int) -> None:
    s, _, s_y = SCALES[ratios]
    s_y = s_y if ratios == "unrelated" else s_y * 8
    x, made = some(8, 16, 30, 30), layer("int32", ("asymmetric", 8))
    made.input_scale.fill_(s)
    made.output_scale.fill_(s_y)
    made.output_zero_point.fill_(zero)
    weight = [made.codes.numpy(), made.weight_scale.numpy(), np.zeros(16, INT8)]
    inputs = [x, FLOAT(s), CODES(77), *weight, FLOAT(s_y), CODES(zero), made.bias.numpy()]
    expected = kernel("QLinearConv", inputs, kernel_shape=[3, 3], pads=[1] * 4)
    given = made(made.input_on_grid.values(torch.from_numpy(x).float()))
    assert torch.equal(made.output_on_grid.codes(given).long(), expected)
    assert 0 < (expected == zero).float().mean() < 0.9


def test_a_layers_output_ends_at_its_bits_and_at_a_clip() -> None:
    x = some(2, 16, 9, 9)
    plain, cut, clipped = (
        layer("float32", ("unsigned", bits), top) for bits, top in [(8, None), (4, None), (4, 11)]
    )
    codes = []
    for made in (plain, cut, clipped):
        made.output_scale.fill_(8.0)
        given = made(made.input_on_grid.values(torch.from_numpy(x).float()))
        codes.append(given / 8.0)
    assert codes[0].max() > 15
    assert torch.equal(codes[1], codes[0].clamp(0, 15))
    assert torch.equal(codes[2], codes[0].clamp(0, 11))


def test_a_layer_of_float_weights_rounds_what_it_computes() -> None:
    spec = layer("int32", ("unsigned", 4)).spec
    changes = {"weight_bits": None, "weight_grid": None, "bias": "none"}
    made = IntegerConv2d(spec.model_copy(update=changes), nn.Conv2d(16, 16, 3, padding=1))
    made.codes.normal_(generator=torch.Generator().manual_seed(0))
    made.output_scale.fill_(0.5)
    x = torch.from_numpy(some(1, 16, 9, 9)).float()
    expected = F.conv2d(x, made.codes, padding=1).div(0.5).round().clamp(0, 15) * 0.5
    assert torch.equal(made(x), expected)
