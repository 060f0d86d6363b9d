"""Files too large for one message have their tensors beside them; the limit is lowered here."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import qtool
from qtool.errors import ExportError
from qtool.export.proof import constants
from qtool.export.proof.gate import stored_codes
from qtool.export.proof.measure import Evidence, export_report, refuse
from qtool.export.proof.site_codes import compare_site_codes
from qtool.export.targets.onnxruntime import OnnxRuntime, OnnxSession
from qtool.export.writing import saved
from qtool.export.writing.onnx_qdq import write_onnx
from qtool.export.writing.request import Writing
from qtool.files.whole import unproven
from qtool.inspection.onnx import inspect_onnx
from qtool.integer.layers import integer_layers

RECIPE = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "every_value"}}
IMAGES = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def integer() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(512, 5)).eval()
    return qtool.convert(qtool.prepare(model, RECIPE, example=IMAGES))


@pytest.fixture
def low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "LIMIT", 4000)  # bytes; the second convolution alone has 4,608


def outputs(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": IMAGES.numpy()})[0]


@pytest.mark.usefixtures("low")
def test_a_large_file_is_proven_and_moves_with_its_tensors(
    integer: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "large.onnx"
    with unproven(path) as trial:
        described = write_onnx(integer, IMAGES, trial, Writing())
        batches = [(IMAGES, torch.arange(16) % 5)]
        report = export_report(trial, path, described, Evidence(integer, lambda: batches, IMAGES))
        refuse(report, described)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    data = tmp_path / "large.onnx.data"
    assert data.stat().st_size >= 32 * 32 * 9 * 3 // 8  # 3 bits hold the codes of that layer
    assert report.file_bytes == path.stat().st_size + data.stat().st_size
    assert report.codes_compared == 3 * 32 * 9 + 32 * 32 * 9 + 512 * 5
    told = inspect_onnx(path)
    assert (told.file_bytes, told.problems) == (report.file_bytes, [])
    assert [layer.layer for layer in told.layers] == ["0", "2", "4"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in (path, data):
        shutil.move(file, elsewhere)
    with torch.no_grad():
        expected = integer(IMAGES).numpy()
    assert np.allclose(outputs(elsewhere / "large.onnx"), expected, atol=1e-5)


def test_it_is_the_file_that_it_would_be_in_one(
    integer: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qtool.export_onnx(integer, IMAGES, tmp_path / "one.onnx")
    monkeypatch.setattr(saved, "LIMIT", 4000)
    saved.data_beside(tmp_path / "two.onnx").write_bytes(b"what was there before")
    qtool.export_onnx(integer, IMAGES, tmp_path / "two.onnx")
    one, two = (onnx.load(tmp_path / f"{name}.onnx") for name in ("one", "two"))
    for tensor in two.graph.initializer:
        tensor.ClearField("data_location")  # which onnx.load leaves at its default
    assert one.SerializeToString() == two.SerializeToString()
    assert (tmp_path / "two.onnx").stat().st_size < (tmp_path / "one.onnx").stat().st_size
    assert not (tmp_path / "one.onnx.data").exists()


class Counting(OnnxRuntime):
    """ONNX Runtime, which keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[int] = []

    def open(self, model: Path | bytes, *, threads: int = 0, plainly: bool = False) -> OnnxSession:
        self.given.append(len(model) if isinstance(model, bytes) else 0)
        return super().open(model, threads=threads, plainly=plainly)


@pytest.mark.usefixtures("low")
def test_codes_are_unpacked_part_by_part_and_the_largest_from_a_file(
    integer: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    qtool.export_onnx(integer, IMAGES, tmp_path / "m.onnx", target="int8")
    layers = {f"{name}.codes": layer for name, layer in integer_layers(integer).items()}
    monkeypatch.setattr(constants, "PART", 3500)  # bytes: 864 and 2,560 of codes; then 9,216
    runtime = Counting()
    found = stored_codes(tmp_path / "m.onnx", ["0.codes", "4.codes", "2.codes"], runtime)
    assert len(runtime.given) == 2
    assert 864 + 2560 < runtime.given[0] < 4000
    assert runtime.given[1] == 0  # a file, as 9,216 bytes are more than a message may have here
    for name, layer in layers.items():
        assert np.array_equal(found[name], layer.codes_of_file.numpy())


@pytest.mark.usefixtures("low")
def test_codes_of_values_of_a_large_file_are_compared(integer: nn.Module, tmp_path: Path) -> None:
    qtool.export_onnx(integer, IMAGES, tmp_path / "m.onnx", target="int8")
    runtime = Counting()
    compared = compare_site_codes(tmp_path / "m.onnx", integer, IMAGES, runtime)
    assert runtime.given == [0]
    assert sum(one.values for one in compared.values()) >= 16 * 32 * (36 + 16)
    assert all(one.differing == 0 for one in compared.values())


@pytest.mark.usefixtures("low")
def test_a_large_file_that_is_no_valid_onnx_does_not_stay(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((100, 100), np.float32), "w")
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 100])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 7])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "v"], ["y"])], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    with pytest.raises(ExportError, match="the graph is no valid ONNX"):
        saved.save_checked(model, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    assert model.graph.initializer[0].raw_data == bytes(40000)


def test_what_fails_leaves_the_file_and_the_tensors_that_were_there(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    for file in (path, saved.data_beside(path)):
        file.write_bytes(b"good")

    def fail() -> None:
        with unproven(path) as trial:
            trial.write_bytes(b"bad")
            saved.data_beside(trial).write_bytes(b"bad")
            raise ExportError("it disagrees")

    with pytest.raises(ExportError):
        fail()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "m.onnx": b"good",
        "m.onnx.data": b"good",
    }
