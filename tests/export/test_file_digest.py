"""A file is what was written, what a tool made of that, or damaged: told by the digest in it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import qtool
from qtool.errors import DamagedFileError, InputError
from qtool.export.proof.damage import refuse_damaged
from qtool.export.writing.file_digest import KEY, seal, state_of
from qtool.inspection.onnx import read_onnx
from tests.kit import float_net, shell


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Target -> a small file for it."""
    folder, images = tmp_path_factory.mktemp("files"), torch.randn(4, 3, 16, 16)
    model = qtool.prepare(float_net(), {"weights": {"bits": 3}, "activations": {"bits": 4}}, images)
    qtool.calibrate(model, [images])
    integer = qtool.convert(model.eval())
    for target in ("onnxruntime", "int8"):
        qtool.export_onnx(integer, images, folder / f"{target}.onnx", target=target)
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def file(files: dict[str, bytes], tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(files["onnxruntime"])
    return path


def changed(path: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(str(path))
    change(model)
    onnx.save(model, str(path))


def one_number(model: onnx.ModelProto, name: str) -> None:
    item = next(item for item in model.graph.initializer if item.name == name)
    array = numpy_helper.to_array(item).copy()
    array.reshape(-1).view(np.uint8)[0] ^= 1
    item.CopyFrom(numpy_helper.from_array(array, name))


def attribute(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "Conv")
    next(item for item in node.attribute if item.name == "pads").ints[0] ^= 1


def metadata(model: onnx.ModelProto) -> None:
    entry = next(e for e in model.metadata_props if e.key.startswith("qtool.layer."))
    entry.value = entry.value.replace('"bits":3', '"bits":2')


def first_annotation(model: onnx.ModelProto) -> None:
    model.graph.quantization_annotation[0].quant_parameter_tensor_names[2].value = "INT7"


SCALE = "sites.input0.values.scale"
DAMAGES: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "a scale": (
        lambda m: one_number(m, "sites.input0.values.scale"),
        "tensor sites.input0.values.scale",
    ),
    "an attribute": (attribute, "node "),
    "metadata": (metadata, "metadata qtool.layer."),
    "an annotation": (first_annotation, "annotation "),
    "an opset": (lambda m: setattr(m.opset_import[0], "version", 20), "field 8 of the model"),
    "a fixed size": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 18),
        "size 2 of input images 18",
    ),
    "an input's name in one place": (
        lambda m: setattr(m.graph.output[0], "name", "logitt"),
        "output logitt",
    ),
}


def sets_sizes(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def without_annotations(model: onnx.ModelProto) -> None:
    del model.graph.quantization_annotation[:]
    model.opset_import[0].version += 1


def says_more(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="mine", value="x")
    model.doc_string = "by me"
    model.graph.name = "other"
    model.opset_import.add(domain="ai.onnx.ml", version=5)


def renamed(model: onnx.ModelProto) -> None:
    onnx.compose.add_prefix(model, "p_", inplace=True)


def one_more_node(model: onnx.ModelProto) -> None:
    output = model.graph.output[0].name
    model.graph.node[-1].output[0] = "inner"
    model.graph.node.add(op_type="Identity", input=["inner"], output=[output])


REWRITINGS: dict[str, Callable[[onnx.ModelProto], object]] = {
    "sizes are fixed": sets_sizes,
    "annotations are dropped": without_annotations,
    "others say more": says_more,
    "all is renamed": renamed,
    "there are other nodes": one_more_node,
}


def test_a_file_is_as_it_was_written_and_says_so_once(file: Path) -> None:
    before = file.read_bytes()
    assert state_of(file).kind == "as_written"
    refuse_damaged(file)
    seal(file)
    assert file.read_bytes() == before
    assert [e.key for e in onnx.load(str(file)).metadata_props].count(KEY) == 1


@pytest.mark.parametrize(("damage", "why"), DAMAGES.values(), ids=DAMAGES)
def test_a_part_that_is_another_is_named(
    damage: Callable[[onnx.ModelProto], object], why: str, file: Path
) -> None:
    changed(file, damage)
    state = state_of(file)
    assert state.kind == "damaged"
    assert why in state.why
    with pytest.raises(DamagedFileError, match="damaged, or edited by hand: "):
        refuse_damaged(file)


@pytest.mark.parametrize("target", ["onnxruntime", "int8"])
@pytest.mark.parametrize("rewriting", REWRITINGS.values(), ids=REWRITINGS)
def test_what_a_tool_makes_of_it_is_no_damage(
    rewriting: Callable[[onnx.ModelProto], object], target: str, files, file: Path
) -> None:
    file.write_bytes(files[target])
    changed(file, rewriting)
    assert state_of(file).kind == "rewritten"
    refuse_damaged(file)


def test_a_weight_that_is_another_is_told_in_a_file_that_a_tool_rewrote(files, file: Path) -> None:
    file.write_bytes(files["int8"])
    changed(file, one_more_node)
    changed(file, lambda model: one_number(model, "conv2.codes"))
    with pytest.raises(DamagedFileError, match=r"no tensor has the codes of conv2 that its"):
        refuse_damaged(file)


def test_tensors_beside_the_file_count_as_in_it(file: Path) -> None:
    model = onnx.load(str(file))
    onnx.save(
        model, str(file), save_as_external_data=True, location="m.onnx.data", size_threshold=16
    )
    assert state_of(file).kind == "as_written"
    beside = file.with_name("m.onnx.data")
    data = bytearray(beside.read_bytes())
    data[3] ^= 1
    beside.write_bytes(data)
    assert state_of(file).kind == "damaged"


def test_numbers_beside_are_not_read_without_end(file: Path, tmp_path: Path) -> None:
    model = onnx.load(str(file))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="endless")
    tensor.external_data.add(key="length", value=str(2**62))
    file.write_bytes(model.SerializeToString())
    (tmp_path / "endless").symlink_to("/dev/zero")
    assert state_of(file).kind == "damaged"
    with (tmp_path / "large.onnx").open("wb") as large:
        large.truncate(2**31)  # takes no room
    with pytest.raises(
        InputError, match=r"large\.onnx: not an ONNX model: more than 2,147,483,647"
    ):
        refuse_damaged(tmp_path / "large.onnx")


def test_taking_the_digest_out_is_the_way_to_use_a_file_as_it_is(file: Path) -> None:
    changed(file, attribute)

    def without_digest(model: onnx.ModelProto) -> None:
        kept = [entry for entry in model.metadata_props if entry.key != KEY]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)

    changed(file, without_digest)
    assert state_of(file).kind == "unknown"
    refuse_damaged(file)  # the codes of its layers are right


def test_every_command_refuses_a_damaged_file(file: Path) -> None:
    changed(file, lambda model: one_number(model, SCALE))
    for command in (["predict", str(file), str(file)], ["bench", str(file)]):
        code, out, err = shell(*command)
        assert (code, out) == (2, "")
        assert (
            "tensor sites.input0.values.scale is not what was written (SHA-256); export again"
            in err
        )
    code, out, err = shell("compare", "runs", str(file))
    assert (code, out) == (2, "")
    code, out, err = shell("inspect", str(file))
    assert code == 2
    assert f"tensor {SCALE} is not what was" in " ".join(out.split())
    code, out, err = shell("inspect", str(file), "--repair", str(file.with_name("r.onnx")))
    assert (code, out) == (2, "")


def without_texts(path: Path) -> bytes:
    """Return what a file says that a value is read from, or an output computed."""
    model = read_onnx(path)
    model.doc_string = model.graph.name = model.graph.doc_string = ""
    del model.graph.metadata_props[:], model.graph.value_info[:]
    del model.metadata_props[-1]  # the digest itself, whatever it is called
    graph = model.graph
    for part in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
    return model.SerializeToString()


def test_a_bit_anywhere_is_told(files, file: Path) -> None:
    whole, expected, texts = bytearray(files["onnxruntime"]), without_texts(file), 0
    for place in range(5, len(whole), 29):
        whole[place] ^= 8
        file.write_bytes(whole)
        if state_of(file).kind != "damaged":
            try:
                assert without_texts(file) == expected
                texts += 1
            except InputError:
                pass  # no ONNX model any more
        whole[place] ^= 8
    assert texts < len(whole) / 29 / 5
