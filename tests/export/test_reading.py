"""ONNX files of anyone: what their sizes, or their folders, cannot hold is refused before it is."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qtool.errors import InputError
from qtool.export import reading
from qtool.export.reading import read_model
from qtool.export.writing.annotation import range_of_datatype
from tests.kit import shell

SHAPE = numpy_helper.from_array(np.array([10**5, 10**5]), "s")
NUMBERS = numpy_helper.from_array(np.arange(12, dtype=np.float32), "a")


def written(path: Path, nodes: list[Any], tensors: list[Any]) -> Path:
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [given], [made], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    path.write_bytes(model.SerializeToString())
    return path


def node(kind: str, given: list[str], made: str = "y", **attributes: Any) -> Any:
    return helper.make_node(kind, given, [made], **attributes)


def tensor(**changes: Any) -> TensorProto:
    made = TensorProto(name="a", data_type=TensorProto.FLOAT, dims=[3], raw_data=bytes(12))
    for key, value in changes.items():
        if key == "dims":
            del made.dims[:]
            made.dims.extend(value)
        else:
            setattr(made, key, value)
    return made


def outside(place: str, **said: int) -> TensorProto:
    made = tensor(data_location=TensorProto.EXTERNAL)
    made.ClearField("raw_data")
    made.external_data.add(key="location", value=place)
    for key, value in said.items():
        made.external_data.add(key=key, value=str(value))
    return made


DOUBLED = [node("Concat", [f"d{k - 1}"] * 2, f"d{k}", axis=0) for k in range(1, 40)]
IDENTITY = [node("Identity", ["a"])]
WRONG: dict[str, tuple[list[Any], list[Any], str]] = {
    "a constant of 40 GB": ([node("ConstantOfShape", ["s"])], [SHAPE], "y takes 40,000,000,000"),
    "a size that is computed": (
        [node("Mul", ["s", "s"], "t"), node("ConstantOfShape", ["t"])],
        [SHAPE],
        "how large y becomes is not told, by ConstantOfShape",
    ),
    "doubled and doubled": (
        [node("Identity", ["a"], "d0"), *DOUBLED, node("Identity", ["d39"])],
        [NUMBERS],
        "its constants become",
    ),
    "doubled from a shape that is not told": (
        [node("Mul", ["s", "s"], "t"), node("Reshape", ["a", "t"], "d0"), *DOUBLED],
        [NUMBERS, numpy_helper.from_array(np.array([1, 12]), "s")],
        "its constants become",
    ),
    "a shape larger than the bytes": (IDENTITY, [tensor(dims=[10**9])], "takes 4,000,000,000"),
    "a negative size": (IDENTITY, [tensor(dims=[-3])], "a has a negative size"),
    "a shape without numbers": (
        IDENTITY,
        [TensorProto(name="a", data_type=TensorProto.FLOAT, dims=[10**9])],
        "a has 1,000,000,000 numbers, as its shape says, and holds 0",
    ),
    "a file of the system": (IDENTITY, [outside("/etc/passwd")], "which is not beside the file"),
    "a file of another folder": (IDENTITY, [outside("../secret")], "not beside the file"),
    "a file that is none": (IDENTITY, [outside("none")], "lies in none, which is no file"),
    "more than there is": (IDENTITY, [outside("data", offset=8)], "a takes 12 bytes, and data has"),
    "more than its shape": (IDENTITY, [outside("large")], "a takes 12 bytes"),
    "a link out of the folder": (IDENTITY, [outside("link")], "which is not beside the file"),
    "no number of bytes": (IDENTITY, [outside("data", length=-1)], "'-1' is no number of bytes"),
}


@pytest.mark.parametrize(("nodes", "tensors", "why"), WRONG.values(), ids=WRONG.keys())
def test_what_a_file_cannot_hold_is_refused(
    nodes: list[Any], tensors: list[Any], why: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(12))
    (folder / "data").write_bytes(bytes(12))
    (folder / "large").write_bytes(bytes(1000))
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match=why):
        read_model(written(folder / "m.onnx", nodes, tensors))


def test_tensors_beside_a_file_are_read_where_they_are_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"junk" + np.arange(3, dtype=np.float32).tobytes())
    path = written(tmp_path / "m.onnx", IDENTITY, [outside("data", offset=4, length=12)])
    found = numpy_helper.to_array(read_model(path).graph.initializer[0])
    np.testing.assert_array_equal(found, [0, 1, 2])
    assert not read_model(path, tensors=False).graph.initializer[0].raw_data


def test_messages_that_grow_as_they_are_parsed_are_counted_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_PARTS", 1000)
    empty = b"\x0a\x00" * 1000  # nodes without contents
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + b"\xd0\x0f" + empty)
    assert len(onnx.load(tmp_path / "m.onnx").graph.node) == 1000
    with pytest.raises(InputError, match=r"m\.onnx: not an ONNX model: more than 1,000 parts"):
        read_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("data", [b"\x3a\x05ab", b"abc", b"\x08", b"\x08" + b"\xff" * 11, b"\x0b"])
def test_what_is_no_message_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(InputError, match="not an ONNX model"):
        read_model(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", ["INT9999999999", "UINT65", "INT0", "INT08", "UINT"])
def test_no_integer_type_is_wider_than_64_bits(name: str) -> None:
    assert range_of_datatype(name) is None
    assert range_of_datatype("UINT64") == (0, 18446744073709551615)


@pytest.mark.parametrize("command", [["inspect"], ["bench"], ["predict"], ["compare", "runs"]])
def test_a_name_that_is_no_text_is_refused(command: list[str], tmp_path: Path) -> None:
    path = written(tmp_path / "m.onnx", IDENTITY, [NUMBERS])
    data = path.read_bytes()
    assert data.count(b"Identity") == 1
    path.write_bytes(data.replace(b"Identity", b"Ident\xffty"))
    code, _, err = shell(*command, str(path), *([str(path)] if command == ["predict"] else []))
    assert code == 2
    assert "m.onnx: not an ONNX model: 'utf-8' codec can't decode byte 0xff" in err


def test_tensors_do_not_all_take_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(12))
    many = [outside("data") for _ in range(5)]
    for index, one in enumerate(many):
        one.name = f"a{index}"
    nodes = [node("Concat", [one.name for one in many], axis=0)]
    assert len(read_model(written(tmp_path / "m.onnx", nodes, many[:4])).graph.initializer) == 4
    with pytest.raises(InputError, match="its tensors take 60 bytes beside it, and 12 are there"):
        read_model(written(tmp_path / "m.onnx", nodes, many))


def test_a_graph_that_grows_is_refused_before_a_runtime_opens_it(tmp_path: Path) -> None:
    large = numpy_helper.from_array(np.array([70, 2**20]), "s")  # 280 MiB, harmless if it went off
    path = written(tmp_path / "m.onnx", [node("ConstantOfShape", ["s"])], [large])
    code, _, err = shell("predict", str(path), str(path))
    assert (code, "its constants become 293,601,280 bytes" in err) == (2, True), err
