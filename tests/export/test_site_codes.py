"""The codes of every quantized value in the runtime are held against the integer model's."""

from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import qtool
from qtool.errors import ExportError
from qtool.export.proof.site_codes import compare_site_codes
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing.annotation import read_annotations
from qtool.export.writing.onnx_qdq import export_onnx
from tests.kit import float_net

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
GRIDS = [
    {"bits": 4, "place": "layer_inputs"},
    {"bits": 5, "place": "layer_inputs", "grid": "asymmetric", "range": "ema_min_max"},
    {"bits": 1, "place": "layer_inputs", "grid": "mid_rise"},
]


def integer(activations: dict[str, object], **keys: object) -> torch.nn.Module:
    section = {"weights": {"bits": 4}, "activations": activations, **keys}
    return qtool.convert(qtool.prepare(float_net(), section, IMAGES))


@pytest.mark.parametrize("activations", GRIDS, ids=str)
def test_every_value_of_every_grid_has_the_integer_models_codes(
    activations: dict[str, object], tmp_path: Path
) -> None:
    model = integer(activations)
    export_onnx(model, IMAGES, tmp_path / "m.onnx")
    compared = compare_site_codes(tmp_path / "m.onnx", model, IMAGES, OnnxRuntime())

    assert len(compared) == 3  # the inputs of two convolutions and of the head
    assert {one.values for one in compared.values()} == {3 * 3 * 64, 3 * 8 * 64, 3 * 8}
    assert all((one.differing, one.largest) == (0, 0) for one in compared.values())


class Pooled(nn.Module):
    """A value of 4 bits that is only pooled, and one of 8 bits that is read at 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.left, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(self.first(x).relu(), 2)
        both = torch.cat([self.second(x).relu(), self.left(x).relu()], 1)
        return self.last(both)


def test_codes_that_are_clipped_elsewhere_are_the_integer_models(tmp_path: Path) -> None:
    torch.manual_seed(1)
    activations = {"bits": 4, "place": "every_value", "join_bits": 8}
    section = {"weights": {"bits": 4}, "activations": activations}
    # a narrow range, so that many codes lie at its end
    prepared = qtool.prepare(Pooled(), section, IMAGES).eval()
    with torch.no_grad():
        for name, scale in prepared.named_parameters():
            if name.endswith("scale") and ("relu0" in name or "last.input" in name):
                scale.div_(3)
    model = qtool.convert(prepared, [IMAGES])
    export_onnx(model, IMAGES, tmp_path / "m.onnx")
    file = onnx.load(str(tmp_path / "m.onnx"))
    assert sum(node.op_type == "Clip" for node in file.graph.node) == 1
    compared = compare_site_codes(tmp_path / "m.onnx", model, IMAGES, OnnxRuntime())
    assert {":relu0.codes", "last.input_codes"} <= set(compared)
    assert all(found.differing == 0 for found in compared.values())
    kinds = {note.tensor: note.datatype for note in read_annotations(file.graph)}
    wide = (":relu0.codes", "last.input_codes", ":relu0.repeated.codes")
    assert [kinds[name] for name in wide] == ["UINT8", "UINT8", "UINT4"]


def test_a_code_that_differs_is_counted_where_it_stands(tmp_path: Path) -> None:
    model = integer(GRIDS[0])
    export_onnx(model, IMAGES, tmp_path / "m.onnx")
    file = onnx.load(str(tmp_path / "m.onnx"))
    scale = next(item for item in file.graph.initializer if item.name == "conv2.values.scale")
    doubled = numpy_helper.from_array(2 * numpy_helper.to_array(scale), scale.name)
    scale.CopyFrom(doubled)
    onnx.save(file, str(tmp_path / "m.onnx"))
    found = compare_site_codes(tmp_path / "m.onnx", model, IMAGES, OnnxRuntime())

    assert found["conv1.input_codes"].differing == 0
    assert found["conv2.input_codes"].differing > 0


def test_a_file_without_annotations_or_of_another_model_is_refused(tmp_path: Path) -> None:
    model = integer(GRIDS[0], overrides=[{"match": "conv2", "activations": None}])
    export_onnx(integer(GRIDS[0]), IMAGES, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"conv2\.input_codes: the integer model has no such"):
        compare_site_codes(tmp_path / "m.onnx", model, IMAGES, OnnxRuntime())

    file = onnx.load(str(tmp_path / "m.onnx"))
    del file.graph.quantization_annotation[:]
    onnx.save(file, str(tmp_path / "plain.onnx"))
    with pytest.raises(ExportError, match="export with annotations"):
        compare_site_codes(tmp_path / "plain.onnx", model, IMAGES, OnnxRuntime())
