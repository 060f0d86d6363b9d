"""Exported files, run in ONNX Runtime as it comes."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import qtool
from qtool.conversion.biases import round_biases
from qtool.errors import ExportError, InputError, RecipeError
from qtool.export.proof import gate
from qtool.export.proof.lint import lint
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing import annotation
from qtool.export.writing.onnx_qdq import export_onnx
from qtool.integer.layers import integer_layers

IMAGES = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Both kinds of convolution: one that a runtime can fuse, one that feeds an addition."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 9, 3, stride=2)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(36, 5)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = (x + self.bn2(self.conv2(x))).relu()
        x = self.pool(self.conv3(x).relu())
        return self.fc(x.flatten(1))


def integer_net(bits=4, grid="narrow", activations=None, seed=0, **weights):
    torch.manual_seed(seed)
    net = Net()
    for norm in (net.bn1, net.bn2):
        nn.init.normal_(norm.weight)
        norm.running_var.uniform_(0.5, 2)
    section = {
        "weights": {"bits": bits, "grid": grid, **weights},
        "activations": {"bits": 4, "place": "layer_inputs"} if activations is None else activations,
    }
    model = qtool.prepare(net.eval(), section, IMAGES).eval()
    round_biases(model)
    return qtool.convert(model)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    integer = integer_net()
    return path, integer, qtool.export_onnx(integer, IMAGES, path)


def tensors(described):
    return {layer["name"]: layer["codes"] for layer in described["layers"]}


def logits(path, images=IMAGES):
    return gate.run(OnnxRuntime().open(path), images)


WIDTHS = [
    (1, "narrow"),
    (3, "mid_rise"),
    (8, "narrow"),
    *(
        pytest.param(*w, marks=pytest.mark.slow)
        for w in ((2, "narrow"), (3, "narrow"), (6, "full"))
    ),
]


@pytest.mark.parametrize(("bits", "grid"), WIDTHS)
def test_the_runtime_gives_what_the_integer_model_gives_at_every_width(tmp_path, bits, grid):
    integer = integer_net(bits, grid, range="absmax")  # codes to the ends of the grid
    path = tmp_path / "m.onnx"
    described = qtool.export_onnx(integer, IMAGES, path)

    torch.testing.assert_close(logits(path), integer(IMAGES), rtol=1e-4, atol=1e-5)
    codes = sum(layer.codes.numel() for layer in integer_layers(integer).values())
    assert gate.check_codes(path, integer, tensors(described), OnnxRuntime()) == codes
    packed = sum(layer["packed_bytes"] for layer in described["layers"])
    assert bits <= 8 * packed / codes < bits + 0.1
    onnx.checker.check_model(onnx.load(str(path)), full_check=True)


@pytest.mark.parametrize("grid", ["full", "asymmetric"])
def test_signed_inputs_travel_as_bytes_around_a_zero_point(tmp_path, grid):
    integer = integer_net(activations={"bits": 5, "grid": grid, "range": "ema_min_max"})
    path = tmp_path / "m.onnx"
    qtool.export_onnx(integer, IMAGES, path)

    torch.testing.assert_close(logits(path), integer(IMAGES), rtol=1e-4, atol=1e-5)


def test_layers_that_can_run_in_integer_kernels_and_the_others_are_float(exported):
    path, _, described = exported
    fused = {layer["name"] for layer in described["layers"] if layer["integer_kernel"]}
    operators = [node.op_type for node in OnnxRuntime().optimized(path).node]

    assert fused == {"conv3", "fc"}  # conv1 and conv2 feed the addition
    assert sum(operators.count(kernel) for kernel in OnnxRuntime.integer_kernels) == 2
    assert operators.count("DequantizeLinear") < 6  # float weights were folded at load


def test_the_runtime_does_not_quantize_anything_a_second_time(exported):
    path, integer, _ = exported
    node = next(n for n in OnnxRuntime().optimized(path).node if n.op_type == "QLinearConv")
    constants = {
        i.name: onnx.numpy_helper.to_array(i) for i in OnnxRuntime().optimized(path).initializer
    }

    codes = integer_layers(integer)["conv3"].codes.numpy()
    np.testing.assert_array_equal(constants[node.input[3]], codes)


def test_the_batch_is_dynamic_or_fixed(tmp_path, exported):
    path, integer, _ = exported
    assert logits(path, IMAGES[:3]).shape == (3, 5)

    fixed = tmp_path / "fixed.onnx"
    export_onnx(integer, IMAGES, fixed, batch=4)
    shape = onnx.load(str(fixed)).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_value == 4
    torch.testing.assert_close(logits(fixed, IMAGES[:7]), logits(path, IMAGES[:7]))


def test_every_quantized_tensor_is_annotated_with_tensors_of_the_graph(exported):
    path, integer, _ = exported
    graph = onnx.load(str(path)).graph
    notes = {item.tensor: item for item in annotation.read_annotations(graph)}
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}

    assert lint(onnx.load(str(path))) == []
    for name, layer in integer_layers(integer).items():
        weight, image = notes[f"{name}.codes"], notes[f"{name}.input_codes"]
        np.testing.assert_array_equal(constants[weight.scale], layer.weight_scale.numpy())
        assert not constants[weight.zero_point].any()
        assert weight.datatype == "INT4"
        assert constants[image.scale] == layer.input_scale.numpy()
        assert image.datatype == ("UINT8" if name == "conv1" else "UINT4")


def test_annotations_can_be_left_out(tmp_path, exported):
    _, integer, _ = exported
    path = tmp_path / "plain.onnx"
    export_onnx(integer, IMAGES, path, annotate=False)

    assert not onnx.load(str(path)).graph.quantization_annotation
    assert lint(onnx.load(str(path)))


def test_widths_and_the_rest_stand_in_the_metadata(tmp_path, exported):
    _, integer, _ = exported
    path = tmp_path / "m.onnx"
    export_onnx(integer, IMAGES, path, metadata={"recipe": {"seed": 7}})
    said = annotation.read_metadata(onnx.load(str(path)))

    assert said["recipe"] == {"seed": 7}
    assert {layer["weight_bits"] for layer in said["layers"]} == {4}
    assert {layer["weight_estimator"] for layer in said["layers"]} == {"straight_through"}


def test_the_file_says_nothing_of_where_it_was_made(exported):
    path, _, _ = exported

    assert b"site-packages" not in path.read_bytes()
    assert b".py" not in path.read_bytes()


def edited(path, tmp_path, edit):
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(tmp_path / "edited.onnx"))
    return tmp_path / "edited.onnx"


def rename_scale(model):
    model.graph.quantization_annotation[0].quant_parameter_tensor_names[0].value = "nowhere"


def rename_tensor(model):
    model.graph.quantization_annotation[0].tensor_name = "nowhere"


def drop_one(model):
    del model.graph.quantization_annotation[1]


def drop_datatype(model):
    del model.graph.quantization_annotation[0].quant_parameter_tensor_names[2]


def write_twice(model):
    model.graph.quantization_annotation.append(model.graph.quantization_annotation[0])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rename_scale, "SCALE_TENSOR nowhere is no tensor"),
        (rename_tensor, "there is no such tensor"),
        (drop_one, "not annotated"),
        (drop_datatype, "no finn_datatype"),
        (write_twice, "annotated twice"),
    ],
)
def test_the_linter_finds_damaged_annotations(exported, tmp_path, edit, message):
    problems = lint(onnx.load(str(edited(exported[0], tmp_path, edit))))

    assert any(message in problem for problem in problems)


def flip_a_bit(model):
    packed = next(i for i in model.graph.initializer if i.name.startswith("conv2.codes.packed"))
    packed.raw_data = bytes([packed.raw_data[0] ^ 1]) + packed.raw_data[1:]


def test_one_flipped_bit_of_a_packed_weight_is_found(exported, tmp_path):
    path, integer, described = exported
    damaged = edited(path, tmp_path, flip_a_bit)

    with pytest.raises(ExportError, match="codes of conv2 differ"):
        gate.check_codes(damaged, integer, tensors(described), OnnxRuntime())


def test_twin_layers_with_the_same_weights_export(tmp_path):
    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
            self.b.load_state_dict(self.a.state_dict())

        def forward(self, x):
            return (self.a(x) - 0.5 * self.b(x.relu())).mean((2, 3))

    section = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "layer_inputs"}}
    model = qtool.prepare(Twins().eval(), section, IMAGES).eval()
    round_biases(model)
    integer = qtool.convert(model)
    described = export_onnx(integer, IMAGES, tmp_path / "m.onnx")

    gate.check_codes(tmp_path / "m.onnx", integer, tensors(described), OnnxRuntime())
    torch.testing.assert_close(logits(tmp_path / "m.onnx"), integer(IMAGES), rtol=1e-4, atol=1e-5)


def test_an_unknown_target_is_named():
    with pytest.raises(RecipeError, match="unknown target 'tensorrt'"):
        export_onnx(integer_net(), IMAGES, "m.onnx", "tensorrt")


def test_a_model_that_torch_cannot_trace_is_an_export_error(tmp_path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(432, 2)

        def forward(self, x):
            x = x.flatten(1)
            return self.fc(x) if float(x.sum()) > 0 else self.fc(-x)

    section = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}
    integer = qtool.convert(qtool.prepare(Branches().eval(), section, IMAGES).eval())

    with pytest.raises(ExportError, match=r"torch\.onnx cannot express the model"):
        export_onnx(integer, IMAGES, tmp_path / "m.onnx")


def test_a_file_that_the_runtime_cannot_load_is_an_input_error(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"no model")

    with pytest.raises(InputError, match="cannot load it"):
        OnnxRuntime().open(path)


def test_layers_that_may_saturate_are_named_as_what_may_be_behind_a_disagreement():
    assert gate.hint_for([]) == ""
    assert "may saturate in conv1, fc: convert with --no-sat" in gate.hint_for(["conv1", "fc"])
