"""Files that other tools rewrote get their annotations, names and packed weights back."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxscript.optimizer
import pytest
import torch
from onnx import compose, numpy_helper, version_converter
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.errors import ExportError, InputError
from qtool.export.proof.gate import stored_codes
from qtool.export.proof.lint import lint
from qtool.export.repair.repaired import repaired
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing.annotation import Annotation, read_annotations, read_metadata
from qtool.export.writing.layer_metadata import PREFIX, read_layers
from qtool.export.writing.onnx_qdq import export_onnx
from qtool.integer.layers import integer_layers
from tests.kit import refused, shell

RUNTIME = OnnxRuntime()
IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(4))
Rewrite = Callable[[onnx.ModelProto], onnx.ModelProto]


class Net(nn.Module):
    """A layer whose weight stays under DequantizeLinear, two that get float ones, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.two, self.head = nn.Conv2d(32, 16, 3, padding=1), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.two(self.one(x).relu())).relu()
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.fixture(scope="module")
def integer() -> nn.Module:
    torch.manual_seed(0)
    activations = {"bits": 4, "place": "layer_inputs"}
    section = {"weights": {"bits": 3}, "activations": activations}
    return qtool.convert(qtool.prepare(Net().eval(), section, IMAGES), [IMAGES])


@pytest.fixture(scope="module")
def model(integer: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("repair") / "m.onnx"
    export_onnx(integer, IMAGES[:2], path)
    return onnx.load(str(path))


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose every weight stands unpacked, without annotations, as onnxsim does."""
    made = copy.deepcopy(model)
    onnxscript.optimizer.fold_constants(made, input_size_limit=10**6, output_size_limit=10**7)
    result = onnxscript.optimizer.optimize(made, input_size_limit=10**6, output_size_limit=10**7)
    del result.graph.quantization_annotation[:]
    return result


def by_columns(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a folded model whose head multiplies by the transposed float weight."""
    made = folded(model)
    constants = {item.name: item for item in made.graph.initializer}
    gemm = next(node for node in made.graph.node if node.op_type == "Gemm")
    dequantize = next(n for n in made.graph.node if gemm.input[1] in n.output)
    codes, scale = (numpy_helper.to_array(constants[n]) for n in dequantize.input[:2])
    real = codes.astype(np.float32) * scale.reshape(-1, 1)
    made.graph.initializer.append(numpy_helper.from_array(real.T.copy(), "turned"))
    gemm.input[1] = "turned"
    next(attribute for attribute in gemm.attribute if attribute.name == "transB").i = 0
    made.graph.node.remove(dequantize)
    made.graph.initializer.remove(constants[dequantize.input[0]])
    return made


def without_annotations(model: onnx.ModelProto) -> onnx.ModelProto:
    made = copy.deepcopy(model)
    del made.graph.quantization_annotation[:]
    return made


def said(model: onnx.ModelProto) -> dict[str, Annotation]:
    return {note.tensor: note for note in read_annotations(model.graph)}


def meant(model: onnx.ModelProto) -> dict[str, tuple[object, ...]]:
    """Return what annotations say, with the numbers for their names, which a tool may join."""
    numbers = {i.name: numpy_helper.to_array(i).tolist() for i in model.graph.initializer}
    return {
        name: (note.datatype, numbers[note.scale], numbers[note.zero_point])
        for name, note in said(model).items()
    }


def size(model: onnx.ModelProto) -> int:
    made = copy.deepcopy(model)
    del made.graph.value_info[:]
    return len(made.SerializeToString())


DEFAULT: dict[str, Rewrite] = {
    "no annotations": without_annotations,
    "folded": folded,
    "by columns": by_columns,
    "version_converter": lambda m: version_converter.convert_version(m, 22),
    "onnxscript": lambda m: onnxscript.optimizer.optimize(copy.deepcopy(m)),
}


@pytest.mark.parametrize("name", DEFAULT)
def test_annotations_and_packed_weights_come_back(
    name: str, model: onnx.ModelProto, integer: nn.Module, tmp_path: Path
) -> None:
    check_repair(DEFAULT[name](model), model, integer, tmp_path)


def check_repair(
    given: onnx.ModelProto, model: onnx.ModelProto, integer: nn.Module, tmp_path: Path
) -> None:
    made, done = repaired(given, Path("m.onnx"))
    path = tmp_path / "made.onnx"
    onnx.save(made, str(path))

    assert meant(made) == meant(model)
    assert lint(made, RUNTIME) == []
    assert size(made) <= 1.02 * size(model) + 2048  # names of nodes
    assert done
    names = {name: layer.tensors["codes"] for name, layer in read_layers(model).items()}
    assert set(names) == {"stem", "one", "two", "head"}
    found = stored_codes(path, list(names.values()), RUNTIME)
    for name, tensor in names.items():
        codes = integer_layers(integer)[name].codes.numpy()
        assert np.array_equal(found[tensor], codes)
    logits = [RUNTIME.open(m.SerializeToString()).run({"images": IMAGES.numpy()})["logits"]
              for m in (model, made)]  # fmt: skip
    before, after = (value.astype(np.float64) for value in logits)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


TOOLS = ("onnxsim", "onnxslim", "onnxoptimizer")


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_a_file_that_a_tool_rewrote_comes_back(
    tool: str, model: onnx.ModelProto, integer: nn.Module, tmp_path: Path
) -> None:
    module, given = pytest.importorskip(tool), copy.deepcopy(model)
    if tool == "onnxsim":
        rewritten, _ = module.simplify(given)
    else:
        rewritten = module.slim(given) if tool == "onnxslim" else module.optimize(given)
    assert not rewritten.graph.quantization_annotation
    check_repair(rewritten, model, integer, tmp_path)


def test_names_with_a_prefix_are_annotated_by_those_names(model: onnx.ModelProto) -> None:
    given = compose.add_prefix(model, "p/")
    assert any("there is no such tensor" in problem for problem in lint(given))
    made, done = repaired(given, Path("m.onnx"))

    assert {f"p/{name}" for name in said(model)} == set(said(made))
    assert lint(made) == []
    assert any("of no such tensor removed" in line for line in done)


def test_what_is_whole_is_left_as_it_is(model: onnx.ModelProto) -> None:
    made, done = repaired(model, Path("m.onnx"))

    assert done == []
    assert made.graph.node == model.graph.node
    assert said(made) == said(model)


def test_a_folder_is_no_file_to_export_to(integer: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a folder; give the name of an \.onnx file"):
        export_onnx(integer, IMAGES[:2], tmp_path)


def test_codes_that_are_padded_are_annotated_where_they_are_made(tmp_path: Path) -> None:
    """A shortcut that leaves out pixels and adds channels of zeros."""

    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.one = nn.Conv2d(4, 8, 3, stride=2, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            return (self.one(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))).relu().mean((2, 3))

    section = {"weights": {"bits": 4}, "activations": {"bits": 4}}
    integer = qtool.convert(qtool.prepare(Shortcut().eval(), section, IMAGES), [IMAGES])
    export_onnx(integer, IMAGES[:2], tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    assert any(node.op_type == "Pad" and ".codes" in node.input[0] for node in model.graph.node)
    assert lint(model, RUNTIME) == []

    made, done = repaired(model, Path("m.onnx"))

    assert done == []
    assert said(made) == said(model)


def test_a_weight_that_is_another_is_left_and_named(model: onnx.ModelProto) -> None:
    given = folded(model)
    codes = next(item for item in given.graph.initializer if item.name == "head.codes")
    array = numpy_helper.to_array(codes).copy()
    array[0, 0] = -array[0, 0] or 1
    codes.CopyFrom(numpy_helper.from_array(array, codes.name))
    made, done = repaired(given, Path("m.onnx"))

    assert not any(line.startswith("head: ") for line in done)
    assert "head: no tensor of the file has the codes that metadata say (SHA-256)" in lint(
        made, RUNTIME
    )


def test_a_repair_that_computes_otherwise_is_not_written(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qtool.export.repair import repaired as story

    def wrong(given: onnx.ModelProto, *rest: object, among: object) -> onnx.ModelProto:
        made = copy.deepcopy(given)
        scale = next(i for i in made.graph.initializer if i.name == "head.weight_scale")
        scale.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(scale), scale.name))
        return made

    monkeypatch.setattr(story, "pack_again", wrong)
    onnx.save(folded(model), str(tmp_path / "m.onnx"))
    with pytest.raises(ExportError, match="computes another logits"):
        repaired(onnx.load(str(tmp_path / "m.onnx")), tmp_path / "m.onnx")
    argv = ["inspect", str(tmp_path / "m.onnx"), "--repair", str(tmp_path / "out.onnx")]
    code, _, error = shell(*argv)
    assert code == 1
    assert "nothing was written" in error
    assert not (tmp_path / "out.onnx").exists()


def test_a_file_of_others_is_refused(model: onnx.ModelProto) -> None:
    given = copy.deepcopy(model)
    del given.metadata_props[:]
    with pytest.raises(InputError, match=r"m\.onnx: has no metadata of qtool's layers"):
        repaired(given, Path("m.onnx"))
    damaged = copy.deepcopy(model)
    entry = next(e for e in damaged.metadata_props if e.key == f"{PREFIX}one")
    entry.value = entry.value.replace('"bits":3', '"bits":99')
    with pytest.raises(InputError, match=r"its metadata qtool\.layer\.one is damaged"):
        repaired(damaged, Path("m.onnx"))


def test_the_command_repairs_and_says_what_it_did(model: onnx.ModelProto, tmp_path: Path) -> None:
    given, made = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(folded(model), str(given))
    code, out, _ = shell("inspect", str(given), "--json")
    before = json.loads(out)
    assert code in (0, None)
    assert any("the packing of one is undone" in problem for problem in before["problems"])
    code, out, _ = shell("inspect", str(given), "--repair", str(made), "--json")
    after = json.loads(out)

    assert code in (0, None)
    assert after["problems"] == []
    assert after["repaired"] == str(made)
    assert any(line.startswith("one: ") for line in after["repairs"])
    assert after["file_bytes"] == made.stat().st_size < before["file_bytes"]
    refused(tmp_path, "inspect", str(tmp_path), "--repair", str(made))


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("out.bin", "out.bin: qtool writes ONNX files, whose names end in .onnx"),
        ("m.onnx", "m.onnx: the file that is repaired; --repair names another .onnx file"),
        ("./m.onnx", "m.onnx: the file that is repaired"),
        ("folder", "folder: a folder; --repair names an .onnx file"),
    ],
)
def test_a_repair_goes_into_another_onnx_file(
    output: str, why: str, model: onnx.ModelProto, tmp_path: Path
) -> None:
    onnx.save(folded(model), str(tmp_path / "m.onnx"))
    (tmp_path / "folder").mkdir()
    assert why in refused(tmp_path, "inspect", "m.onnx", "--repair", output)


def test_metadata_say_what_made_the_file_and_what_each_layer_is(
    model: onnx.ModelProto, integer: nn.Module
) -> None:
    layers = read_layers(model)
    one, layer = layers["one"], integer_layers(integer)["one"]

    assert read_metadata(model)["version"] == qtool.__version__
    assert (one.bits, one.grid, one.axis, one.shape) == (3, "narrow", 0, [32, 16, 3, 3])
    assert layer.weight_scale is not None
    assert np.array_equal(one.scale, layer.weight_scale.numpy())
    codes = layer.codes.numpy().astype("<i1").tobytes(order="C")
    assert one.sha256.codes == hashlib.sha256(codes).hexdigest()
    assert layer.bias is not None
    bias = layer.bias.numpy().astype("<i4").tobytes()
    assert one.sha256.bias == hashlib.sha256(bias).hexdigest()
