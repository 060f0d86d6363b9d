"""Files that take images of any height and width, and networks that take one size only."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.errors import InputError
from qtool.export.proof.measure import Evidence, export_report, refuse
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing.ends import Ends
from qtool.export.writing.onnx_qdq import write_onnx
from qtool.export.writing.request import Writing
from qtool.graph.inputs import Inputs

RECIPE = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "every_value"}}
IMAGES = torch.randn(8, 3, 16, 12, generator=torch.Generator().manual_seed(0))


def converted(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return qtool.convert(qtool.prepare(nn.Sequential(*layers).eval(), RECIPE, example=IMAGES))


def pooled() -> list[nn.Module]:
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return [*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]


def sizes(path: Path) -> list[list[object]]:
    graph = onnx.load(path).graph
    shapes = [value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)]
    return [[one.dim_param or one.dim_value for one in shape] for shape in shapes]


def difference(path: Path, integer: nn.Module, images: Tensor) -> float:
    (made,) = OnnxRuntime().open(path).run({"images": images.numpy()}).values()
    with torch.no_grad():
        return float(np.abs(made - integer(images).numpy()).max())


@pytest.mark.parametrize(
    "target",
    [
        "onnxruntime",
        pytest.param("portable", marks=pytest.mark.slow),
        pytest.param("web", marks=pytest.mark.slow),
    ],
)
def test_a_network_of_convolutions_takes_any_size(target: str, tmp_path: Path) -> None:
    integer, path = converted(*pooled()), tmp_path / "m.onnx"
    described = qtool.export_onnx(integer, IMAGES, path, target=target, any_size=True)
    assert "notes" not in described
    batch = 1 if target == "web" else "batch"
    assert sizes(path) == [[batch, 3, "height", "width"], [batch, 5]]
    for height, width in ((16, 12), (31, 7), (5, 64)):
        assert difference(path, integer, torch.randn(1, 3, height, width)) < 1e-5


@pytest.mark.slow
def test_sizes_stay_as_they_are_unless_asked_for(tmp_path: Path) -> None:
    qtool.export_onnx(converted(*pooled()), IMAGES, tmp_path / "m.onnx")
    assert sizes(tmp_path / "m.onnx") == [["batch", 3, 16, 12], ["batch", 5]]


class Unshuffled(nn.Module):
    """Takes heights and widths that are even."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(nn.functional.pixel_unshuffle(x, 2))


class OneHeight(nn.Module):
    """Makes a number of the height."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)
        self.gain = nn.Parameter(torch.ones(4, 14, 1))

    def forward(self, x: Tensor) -> Tensor:
        made = self.layer(x)
        return made * self.gain if made.shape[2] == 14 else made


@pytest.mark.parametrize(
    ("layers", "note"),
    [
        ([nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(560, 5)], "does not take 48 x 76: mat1 and"),
        ([nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d((7, 5))], "windows of a pooling depend on it"),
    ],
    ids=["flattened", "adaptive pooling"],
)
def test_a_network_of_one_size_keeps_it_and_says_why(
    layers: list[nn.Module], note: str, tmp_path: Path
) -> None:
    integer, path = converted(*layers), tmp_path / "m.onnx"
    described = qtool.export_onnx(integer, IMAGES, path, any_size=True)
    (said,) = described["notes"]
    assert said.startswith("images: height and width are fixed: ")
    assert note in said
    assert sizes(path)[0] == ["batch", 3, 16, 12]
    assert difference(path, integer, IMAGES) < 1e-5


def test_a_size_of_which_the_code_makes_a_number_is_fixed_alone(tmp_path: Path) -> None:
    integer, path = converted(OneHeight()), tmp_path / "m.onnx"
    described = qtool.export_onnx(integer, IMAGES, path, any_size=True)
    assert described["notes"] == [
        "images: height is fixed: the model's code computes with it as with a number"
    ]
    assert sizes(path)[0] == ["batch", 3, 16, "width"]
    assert difference(path, integer, torch.randn(1, 3, 16, 31)) < 1e-5


@pytest.mark.slow
def test_sizes_that_have_to_be_even_are_proven_in_such_a_size(tmp_path: Path) -> None:
    integer, path = converted(Unshuffled()), tmp_path / "m.onnx"
    described = write_onnx(integer, IMAGES, path, Writing(any_size=True))
    assert described.notes == []
    assert difference(path, integer, torch.randn(1, 3, 18, 30)) < 1e-5
    batches = [(IMAGES, torch.zeros(8))]
    report = export_report(path, path, described, Evidence(integer, lambda: batches, IMAGES))
    assert report.other_size is not None
    assert (report.other_size.height, report.other_size.width) == (48, 76)


@pytest.mark.slow
def test_a_file_is_proven_in_another_size_too(tmp_path: Path) -> None:
    integer, path = converted(*pooled()), tmp_path / "m.onnx"
    described = write_onnx(integer, IMAGES, path, Writing(any_size=True))
    evidence = Evidence(integer, lambda: [(IMAGES, torch.arange(8) % 5)], IMAGES)
    found = export_report(path, path, described, evidence).other_size
    assert found is not None
    assert (found.height, found.width, found.images) == (19, 17, 8)
    assert (found.top1_agreement, found.disagreement) == (1, "")


def test_a_file_that_is_wrong_in_another_size_is_refused(tmp_path: Path) -> None:
    integer, path = converted(*pooled()), tmp_path / "m.onnx"
    described = write_onnx(integer, IMAGES, path, Writing(any_size=True))
    model = onnx.load(path)
    _raise_a_logit_by_height(model)
    onnx.save(model, path)
    evidence = Evidence(integer, lambda: [(IMAGES, torch.arange(8) % 5)], IMAGES)
    report = export_report(path, path, described, evidence)
    assert report.max_abs_difference < 1e-5
    assert report.disagreement.startswith("at 19 x 17: ")
    with pytest.raises(qtool.errors.ExportError, match="at 19 x 17: "):
        refuse(report, described)


def _raise_a_logit_by_height(model: onnx.ModelProto) -> None:
    """Let a file raise its first logit by 50 for each row that images have beyond 16."""
    graph, helper = model.graph, onnx.helper
    for node in graph.node:
        node.output[:] = ["before" if name == "logits" else name for name in node.output]
    names = {"sixteen": np.array([16], np.int64), "row": 50 * np.eye(1, 5, dtype=np.float32)}
    graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in names.items())
    graph.node.extend(
        [
            helper.make_node("Shape", ["images"], ["height"], start=2, end=3),
            helper.make_node("Sub", ["height", "sixteen"], ["more"]),
            helper.make_node("Cast", ["more"], ["more_float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Mul", ["more_float", "row"], ["shift"]),
            helper.make_node("Add", ["before", "shift"], ["logits"]),
        ]
    )


@pytest.mark.slow
def test_a_target_of_fixed_sizes_says_so(tmp_path: Path) -> None:
    writing = Writing("qonnx", any_size=True, unproven=True)
    described = write_onnx(converted(*pooled()), IMAGES, tmp_path / "m.onnx", writing)
    assert described.notes == [
        "images: height and width are fixed: FINN and hls4ml take files of fixed sizes"
    ]
    assert sizes(tmp_path / "m.onnx")[0] == [1, 3, 16, 12]


@pytest.mark.slow
def test_two_inputs_have_sizes_of_their_own(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.left(left).mean((2, 3)) + self.right(right).mean((2, 3))

    example = {"left": IMAGES, "right": torch.randn(8, 3, 10, 10)}
    model = qtool.prepare(Two().eval(), RECIPE, example=example)
    path = tmp_path / "m.onnx"
    described = qtool.export_onnx(qtool.convert(model), example, path, any_size=True)
    assert "notes" not in described
    assert sizes(path)[:2] == [["batch", 3, f"{n}_height", f"{n}_width"] for n in example]


def test_decoded_pictures_come_in_any_size_anyway() -> None:
    with pytest.raises(InputError, match="--any-size: with --preprocess"):
        Writing(any_size=True, ends=Ends(preprocess=True))


def test_what_has_no_images_says_so(tmp_path: Path) -> None:
    example = torch.randn(4, 6)
    model = qtool.prepare(nn.Sequential(nn.Linear(6, 3)).eval(), RECIPE, example=example)
    described = qtool.export_onnx(
        qtool.convert(model), Inputs.of(example), tmp_path / "m.onnx", any_size=True
    )
    assert described["notes"] == ["height and width are not open: nothing that goes in is images"]
