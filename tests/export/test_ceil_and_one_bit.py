"""Inputs of one bit, inputs rounded up, and ternary weights: converted, exported and run."""

from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.conversion.biases import round_biases
from qtool.export.proof import gate
from qtool.export.proof.lint import lint
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing import annotation
from qtool.export.writing.onnx_qdq import export_onnx
from qtool.export.writing.qdq_modules import Ceil
from qtool.integer.layers import integer_layers

IMAGES = torch.randn(64, 2, 10, 10, generator=torch.Generator().manual_seed(1))
AT_LAYERS = {"place": "layer_inputs"}
BIPOLAR = {**AT_LAYERS, "bits": 1, "grid": "full"}
BINARY = {**AT_LAYERS, "bits": 1, "grid": "unsigned"}
CEIL = {**AT_LAYERS, "bits": 4, "grid": "unsigned", "rounding": "ceil"}
SIGNED_CEIL = {**AT_LAYERS, "bits": 3, "grid": "full", "rounding": "ceil"}
OFFSET_CEIL = {**AT_LAYERS, "bits": 4, "grid": "asymmetric", "rounding": "ceil"}
BINARY_CEIL = {**AT_LAYERS, "bits": 1, "grid": "unsigned", "rounding": "ceil"}
BYTE_CEIL = {**AT_LAYERS, "bits": 8, "grid": "full", "rounding": "ceil"}
INPUTS = {
    "{-1, +1}": BIPOLAR,
    "{0, 1}": BINARY,
    "ceil": CEIL,
    "signed ceil": SIGNED_CEIL,
    "ceil with a zero point": OFFSET_CEIL,
    "ceil to {0, 1}": BINARY_CEIL,
    "ceil in all of a byte": BYTE_CEIL,
}
each_input = pytest.mark.parametrize("activations", INPUTS.values(), ids=INPUTS.keys())
OF_LINEAR = ("{-1, +1}", "ceil", "ceil with a zero point")
CASES = [
    *(("convolutions", name) for name in INPUTS),
    *(pytest.param("linear", name, marks=pytest.mark.slow) for name in OF_LINEAR),
]
Exported = tuple[nn.Module, onnx.ModelProto, Path]


def net(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "linear":
        return nn.Sequential(nn.Flatten(), nn.Linear(200, 24), nn.ReLU(), nn.Linear(24, 6))
    made = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    norm: Any = made[1]
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.running_var.uniform_(0.5, 2)
    return made


def integer_net(kind: str, activations: dict[str, Any], **weights: Any) -> nn.Module:
    section = {"weights": {"bits": 4} | weights, "activations": AT_LAYERS | activations}
    model = qtool.prepare(net(kind).eval(), section)
    qtool.calibrate(model, [IMAGES])
    model.eval()
    round_biases(model)
    with torch.no_grad():
        expected = model(IMAGES)
    integer = qtool.convert(model, [IMAGES])
    torch.testing.assert_close(integer(IMAGES), expected, rtol=1e-3, atol=1e-4)
    return integer


def exported(integer: nn.Module, path: Path, ceil: Ceil = "exact") -> onnx.ModelProto:
    export_onnx(integer, IMAGES, path, ceil=ceil)
    model = onnx.load(str(path))
    assert lint(model) == []
    return model


def counted(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}


def chain_to_layer(model: onnx.ModelProto) -> list[tuple[str, list[float]]]:
    """Return the operators between the images and the first layer, each with its constants."""
    known, node, found = constants(model), "images", []
    makers = {name: n for n in model.graph.node for name in n.input}
    for constant in model.graph.node:
        if constant.op_type == "Constant":
            known[constant.output[0]] = onnx.numpy_helper.to_array(constant.attribute[0].t)
    while (step := makers[node]).op_type not in ("Conv", "Gemm", "MatMul"):
        given = [
            float(known[name]) for name in step.input if name in known and known[name].size == 1
        ]
        found.append((step.op_type, given))
        node = step.output[0]
    return [step for step in found if step[0] not in ("Flatten", "Reshape")]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """A function that exports a net with one kind of inputs; each only once."""
    folder = tmp_path_factory.mktemp("onnx")

    @cache
    def make(kind: str, inputs: str, ceil: Ceil = "exact") -> Exported:
        integer, path = integer_net(kind, INPUTS[inputs]), folder / f"{kind} {inputs} {ceil}.onnx"
        return integer, exported(integer, path, ceil), path

    return make


@pytest.mark.parametrize(("kind", "inputs"), CASES)
def test_the_runtime_agrees_with_the_integer_model(
    kind: str, inputs: str, export: Callable[..., Exported]
) -> None:
    integer, _, path = export(kind, inputs)
    expected = integer(IMAGES)
    found = gate.run(OnnxRuntime().open(path), IMAGES)
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    assert torch.equal(found.argmax(1), expected.argmax(1))


@each_input
def test_a_bias_stays_float_where_the_next_layer_rounds_at_zero(
    activations: dict[str, Any],
) -> None:
    layers = integer_layers(integer_net("convolutions", activations))
    at_zero = activations is not BINARY
    assert layers["0"].spec.bias == ("float32" if at_zero else "int32")
    assert bool(layers["0"].spec.unfused) == at_zero
    assert layers["3"].spec.bias == "int32"


def first(integer: nn.Module) -> Any:
    return next(iter(integer_layers(integer).values()))


def test_an_exact_ceil_is_div_ceil_clip_and_a_quantize_of_whole_numbers(
    export: Callable[..., Exported],
) -> None:
    integer, model, _ = export("convolutions", "ceil")
    s = float(first(integer).input_scale)
    assert chain_to_layer(model) == [
        ("Div", [s]),
        ("Ceil", []),
        ("Clip", [0.0, 15.0]),
        ("QuantizeLinear", [1.0, 0.0]),
        ("DequantizeLinear", [s, 0.0]),
    ]
    assert counted(model)["Ceil"] == 2


def test_an_exact_ceil_of_a_signed_grid_is_clipped_around_its_zero_point(
    export: Callable[..., Exported],
) -> None:
    integer, model, _ = export("convolutions", "signed ceil")
    s = float(first(integer).input_scale)
    assert chain_to_layer(model) == [
        ("Div", [s]),
        ("Ceil", []),
        ("Clip", [-4.0, 3.0]),
        ("QuantizeLinear", [1.0, 128.0]),
        ("DequantizeLinear", [s, 128.0]),
    ]


def test_a_shifted_ceil_is_an_addition_before_the_usual_pair(
    export: Callable[..., Exported],
) -> None:
    integer, model, path = export("convolutions", "ceil", "shifted")
    s = float(first(integer).input_scale)
    assert chain_to_layer(model) == [
        ("Add", [float(np.float32(s) / 2)]),
        ("QuantizeLinear", [s, 0.0]),
        ("Clip", [0.0, 15.0]),
        ("DequantizeLinear", [s, 0.0]),
    ]
    assert not counted(model)["Ceil"]
    found, expected = gate.run(OnnxRuntime().open(path), IMAGES), integer(IMAGES)
    assert float((found - expected).abs().median()) <= 1e-4 * float(expected.abs().max())


def test_plus_and_minus_one_are_what_a_tiny_scale_saturates_to(
    export: Callable[..., Exported],
) -> None:
    integer, model, _ = export("convolutions", "{-1, +1}")
    half = float(first(integer).input_scale)
    assert chain_to_layer(model) == [
        ("QuantizeLinear", [float(np.float32(2 * half) * np.float32(1e-6)), 127.0]),
        ("Clip", [127.0, 129.0]),
        ("DequantizeLinear", []),  # once for each channel, as the layer has a float bias
    ]
    known = constants(model)
    spread = [float(known[n.input[0]]) for n in model.graph.node if n.op_type == "Expand"]
    assert spread == [half, 128.0]


def test_a_layer_whose_input_is_plus_and_minus_one_runs_in_integers(
    export: Callable[..., Exported],
) -> None:
    path = export("linear", "{-1, +1}")[2]
    operators = [node.op_type for node in OnnxRuntime().optimized(path).node]
    assert sum(map(operators.count, OnnxRuntime.integer_kernels)) == 1  # the first feeds a sign


def test_zero_and_one_are_the_usual_pair_with_a_clip(export: Callable[..., Exported]) -> None:
    integer, model, _ = export("convolutions", "{0, 1}")
    s = float(first(integer).input_scale)
    assert chain_to_layer(model) == [
        ("QuantizeLinear", [s, 0.0]),
        ("Clip", [0.0, 1.0]),
        ("DequantizeLinear", [s, 0.0]),
    ]


@pytest.mark.parametrize("activations", [BIPOLAR, CEIL], ids=["{-1, +1}", "ceil"])
def test_zeros_and_whole_steps_get_the_same_codes_in_the_runtime(
    activations: dict[str, Any], tmp_path: Path
) -> None:
    layer = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(layer[0].weight)
    section = {"weights": {"bits": 8, "range": "absmax"}, "activations": activations}
    example = torch.linspace(0 if activations is CEIL else -1, 1, 40).reshape(-1, 1)
    integer = qtool.convert(qtool.prepare(layer.eval(), section, example).eval())
    step = first(integer).input_scale * (2 if activations is BIPOLAR else 1)
    x = (
        torch.cat([torch.arange(-3.0, 18.0), torch.tensor([-0.0, 0.5, 1e-3, -1e-3, 1e-5, 1e30])])
        * step
    )
    export_onnx(integer, example, tmp_path / "m.onnx")
    found = gate.run(OnnxRuntime().open(tmp_path / "m.onnx"), x.reshape(-1, 1))
    torch.testing.assert_close(found, integer(x.reshape(-1, 1)), rtol=1e-6, atol=0)
    if activations is BIPOLAR:
        assert torch.equal(found.flatten().sign(), torch.where(x > 0, 1.0, -1.0))


def batches(x: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(part, torch.zeros(len(part))) for part in x.split(16)]


@pytest.mark.parametrize("activations", [CEIL, SIGNED_CEIL, BINARY_CEIL], ids=str)
def test_the_share_of_codes_that_a_shift_changes_is_counted(activations: dict[str, Any]) -> None:
    layer = nn.Sequential(nn.Linear(5, 3))
    section = {"weights": {"bits": 4}, "activations": activations}
    spread = torch.randn(400, 5, generator=torch.Generator().manual_seed(2))
    integer = qtool.convert(qtool.prepare(layer.eval(), section, spread).eval())
    held = first(integer)
    s, grid = held.input_scale.numpy(), held.spec.input
    whole = torch.arange(-8.0, 17.0).repeat(2).reshape(-1, 5) * float(s)
    x = torch.cat([spread, whole, torch.nextafter(whole, whole + 1), whole * 0.5 + float(s) / 3])
    x = torch.cat([x, torch.full((4, 5), 1e-9)])  # above zero, but not by the sum with half a step
    u = x.numpy() / s
    up = np.clip(np.ceil(u), grid.qmin, grid.qmax)
    shifted = np.clip(np.rint((x.numpy() + s / 2) / s), grid.qmin, grid.qmax)
    expected = float(np.mean(up != shifted))
    assert expected > 0
    assert gate.shifted_share(integer, batches(x)) == pytest.approx(expected, abs=1e-12)


def test_only_layers_with_ceil_are_counted() -> None:
    assert gate.shifted_share(integer_net("linear", BINARY), batches(IMAGES)) is None
    section = {
        "weights": {"bits": 4},
        "activations": CEIL,
        "overrides": [{"match": "3", "activations": {"rounding": "half_to_even"}}],
    }
    model = qtool.prepare(net("linear").eval(), section, IMAGES)
    integer = qtool.convert(model.eval())
    held = integer_layers(integer)["1"]
    x = IMAGES.flatten(1)
    given = held.input_codes(x)
    assert held.input_scale is not None
    shifted = torch.round((x + held.input_scale / 2) / held.input_scale).clamp(0, 15)
    expected = float((given != shifted).double().mean())
    assert gate.shifted_share(integer, batches(IMAGES)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("rule", "granularity"), [("learned", "per_channel"), ("mean_abs", "per_tensor")]
)
def test_ternary_weights_are_three_codes_and_called_so(
    rule: str, granularity: str, tmp_path: Path
) -> None:
    keys = {"bits": 2, "grid": "ternary", "range": rule, "granularity": granularity}
    integer = integer_net("convolutions", {"bits": 4}, **keys)
    for layer in integer_layers(integer).values():
        assert set(layer.codes.unique().tolist()) == {-1, 0, 1}
    model = exported(integer, tmp_path / "m.onnx")
    kinds = {a.tensor: a.datatype for a in annotation.read_annotations(model.graph)}
    assert kinds["0.codes"] == kinds["3.codes"] == "TERNARY"
    found, expected = gate.run(OnnxRuntime().open(tmp_path / "m.onnx"), IMAGES), integer(IMAGES)
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_one_bit_weights_and_inputs_together(tmp_path: Path) -> None:
    integer = integer_net("convolutions", BIPOLAR, bits=1, range="mean_abs")
    for layer in integer_layers(integer).values():
        assert set(layer.codes.unique().tolist()) == {-1, 1}
    model = exported(integer, tmp_path / "m.onnx")
    kinds = {a.tensor: a.datatype for a in annotation.read_annotations(model.graph)}
    assert kinds["0.codes"] == "BIPOLAR"
    found, expected = gate.run(OnnxRuntime().open(tmp_path / "m.onnx"), IMAGES), integer(IMAGES)
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


def test_how_ceil_was_written_is_kept_with_the_file(export: Callable[..., Exported]) -> None:
    for ceil in ("exact", "shifted"):
        _, model, _ = export("convolutions", "ceil", ceil)
        said = annotation.read_metadata(model)
        assert said["ceil"] == ceil
        assert [layer["input_rounding"] for layer in said["layers"]] == ["ceil", "ceil"]
