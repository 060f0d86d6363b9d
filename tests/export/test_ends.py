"""Files that prepare pictures and give shares: by themselves, and proven as they ship."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

import qtool
from qtool import pipeline, uses
from qtool.errors import ExportError, InputError
from qtool.export.proof import ends as proof
from qtool.export.proof.ends import Shown, ends_report
from qtool.export.targets.target import TARGETS
from qtool.export.writing.ends import Ends, preparing_alone, put_ends
from qtool.images.preprocess import Preprocess, center_of_shorter_side, squeezed
from qtool.images.usage import Usage
from tests.kit import write_recipe

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PHOTOGRAPHS = center_of_shorter_side(28, *IMAGENET)
GRAY = squeezed(16, (0.3,), (0.25,), gray=True)
GRAY_AS_RGB = squeezed(12, (0.3,) * 3, (0.25,) * 3, gray=True)
RUNTIME = TARGETS["onnxruntime"]().runtime


def smooth(height: int, width: int, depth: int = 3, seed: int = 0) -> np.ndarray:
    """A picture like a photograph: waves of several lengths, with edges."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    planes = []
    for _ in range(depth):
        a, b, c = generator.uniform(3, 20, 3)
        wave = 127 + 80 * np.sin(rows / a + columns / b) + 60 * ((rows // int(c)) % 2)
        planes.append(wave)
    return np.stack(planes, -1).clip(0, 255).astype(np.uint8)


def noise(height: int, width: int, depth: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, depth), np.uint8)


def network_file(
    rule: Preprocess, classes: int = 3, batch: int | str = "batch", opset: int = 21
) -> onnx.ModelProto:
    """A network by hand: pixels times random numbers."""
    channels, pixels = len(rule.mean), int(np.prod(rule.size))
    table = np.random.default_rng(1).normal(size=(channels * pixels, classes)) / pixels
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "table"], ["logits"]),
        ],
        "by_hand",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, channels, *rule.size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(table.astype(np.float32), "table")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def levels_between(
    rule: Preprocess, pictures: list[np.ndarray], *, by_products: bool = False, opset: int = 21
) -> np.ndarray:
    """Differences in grey levels between what a file makes of pictures and Pillow's."""
    model = network_file(rule, opset=opset)
    put_ends(model, Ends(preprocess=True), Usage((), rule), by_products=by_products)
    onnx.checker.check_model(model, full_check=True)
    session = RUNTIME.open(preparing_alone(model).SerializeToString())
    found = []
    for picture in pictures:
        (made,) = session.run({"images": picture[None]}).values()
        image = Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0])
        expected = rule.prepared(image)
        assert made[0].shape == expected.shape
        found.append(np.abs(made[0] - expected) * rule.scaled(rule.std).reshape(-1, 1, 1))
    return np.concatenate([one.ravel() for one in found])


SIZES = [(60, 81), (81, 60), (375, 500), (40, 40), (28, 32), (33, 33), (32, 97)]


@pytest.mark.parametrize("rule", [PHOTOGRAPHS, GRAY, GRAY_AS_RGB], ids=["rgb", "gray", "repeated"])
def test_pictures_are_prepared_as_pillow_prepares_them(rule: Preprocess) -> None:
    """One level in a few pixels, where float32 and Pillow's 22 bits break a tie otherwise."""
    off = levels_between(rule, [make(*z, rule.depth) for z in SIZES for make in (smooth, noise)])
    assert off.max() < 1.001
    assert (off > 0.5).mean() < 0.015  # 7 % at the worst of these sizes


@pytest.mark.parametrize("rule", [PHOTOGRAPHS, GRAY, GRAY_AS_RGB], ids=["rgb", "gray", "repeated"])
def test_products_resize_pictures_as_pillow_does(rule: Preprocess) -> None:
    pictures = [make(*size, rule.depth) for size in SIZES for make in (smooth, noise)]
    off = levels_between(rule, pictures, by_products=True, opset=18)
    assert off.max() < 1.001
    assert (off > 0.5).mean() < 0.03


def test_the_middle_is_cut_as_python_rounds() -> None:
    """Spare pixels 5, 7, 9 and so on: half of them is rounded to even."""
    pictures = [noise(32, 32 + spare) for spare in range(12)]  # of the size they are resized to
    assert levels_between(PHOTOGRAPHS, pictures).max() < 1e-4


@pytest.mark.parametrize("batch", ["batch", 2])
def test_a_file_takes_bytes_and_gives_shares(batch: int | str) -> None:
    model = network_file(PHOTOGRAPHS, batch=batch)
    alone = RUNTIME.open(model.SerializeToString())
    put_ends(model, Ends(preprocess=True, softmax=True), Usage((), PHOTOGRAPHS))
    onnx.checker.check_model(model, full_check=True)
    given = model.graph.input[0].type.tensor_type
    assert given.elem_type == TensorProto.UINT8
    sizes = [d.dim_param or d.dim_value for d in given.shape.dim]
    assert sizes == [batch, "height", "width", 3]

    pictures = np.stack([smooth(50, 70, seed=seed) for seed in range(2)])
    made = RUNTIME.open(model.SerializeToString()).run({"images": pictures})
    prepared = np.stack([PHOTOGRAPHS.prepared(Image.fromarray(p)) for p in pictures])
    expected = alone.run({"images": prepared})["logits"]
    np.testing.assert_allclose(made["logits"], expected, rtol=0, atol=1e-5)
    raised = np.exp(expected.astype(np.float64))
    np.testing.assert_allclose(made["shares"], raised / raised.sum(1, keepdims=True), atol=1e-6)


def test_a_network_of_another_kind_has_no_such_ends() -> None:
    model = network_file(PHOTOGRAPHS)
    with pytest.raises(InputError, match=r"--preprocess: .*nobody says how"):
        put_ends(model, Ends(preprocess=True), Usage())
    model.graph.output[0].name = "boxes"
    with pytest.raises(InputError, match="--softmax: the file gives boxes"):
        put_ends(model, Ends(softmax=True), Usage())
    with pytest.raises(InputError, match="--softmax: an image may have several classes"):
        put_ends(model, Ends(softmax=True), Usage(several=True))
    model.graph.input[0].name = "sound"
    with pytest.raises(InputError, match=r"--preprocess: the file takes sound"):
        put_ends(model, Ends(preprocess=True), Usage((), PHOTOGRAPHS))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of many sizes, as JPEG and PNG, in folders of their classes."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for number, name in enumerate(["cat", "dog", "fish"]):
        for half, count in (("train", 8), ("val", 6)):
            (root / half / name).mkdir(parents=True)
            for index in range(count):
                height, width = generator.integers(30, 80, 2)
                picture = smooth(height, width, seed=10 * index + number)
                picture[..., number] //= 3  # a class has less of one colour
                suffix = "jpg" if index % 2 else "png"
                path = root / half / name / f"{index}.{suffix}"
                Image.fromarray(picture).save(path, quality=92)
    return root


@pytest.fixture(scope="module")
def run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(
        folder,
        {
            "model": {"name": "lenet5"},
            "data": {
                "name": "image_folder",
                "root": str(photographs),
                "image_size": 28,
                "batch_size": 12,
                "workers": 0,
            },
            "quantization": {"weights": {"bits": 4}, "activations": {"bits": 8}},
            "training": {"epochs": 2, "optimizer": "adamw", "learning_rate": 0.01},
        },
    )
    pipeline.train(recipe, run_dir=folder / "run", device="cpu")
    return folder / "run"


@pytest.mark.usefixtures("untimed")
def test_a_file_that_ships_says_of_photographs_what_the_run_says(
    run: Path, photographs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    told = pipeline.export(run, output=path, preprocess=True, softmax=True)
    ends: Any = told.ends
    assert (ends.images, ends.top1_agreement, ends.disagreement) == (18, 1.0, "")
    assert ends.max_grey_difference < 1.001
    assert (ends.same_images > 0, ends.same_agreement) == (True, 1.0)
    assert ends.max_abs_difference < 0.05
    assert ends.accuracy_runtime == told.accuracy_runtime
    assert told.file_bytes == path.stat().st_size
    assert told.integer_operators == told.quantizable_operators
    assert json.loads((tmp_path / "m.export.json").read_text()) == told.to_json()

    val = photographs / "val"
    by_file, by_run = (uses.predict(model, [val]) for model in (path, run))
    for one, other in zip(by_file.images, by_run.images, strict=True):
        assert one.file == other.file
        assert [c.name for c in one.classes] == [c.name for c in other.classes]
        assert {c.name for c in one.classes} == {"cat", "dog", "fish"}
        assert one.classes[0].share == pytest.approx(other.classes[0].share, abs=0.01)
    beside = pipeline.compare_runs([path], data_root=photographs)
    assert beside.arms[0].mean == pytest.approx(told.accuracy_runtime)
    assert beside.arms[0].latency_ms is not None


class Halves(nn.Module):
    """Tells nothing; only its shape is wanted."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :3]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("corner", "resized otherwise than qtool does, by up to"),
        ("mean", "resized otherwise than qtool does, by up to"),
        ("softmax", "shares differ from the softmax"),
        ("size", "is prepared as"),
        ("logits", "the top class agrees on"),
    ],
)
def test_a_file_that_prepares_otherwise_disagrees(spoil: str, message: str, tmp_path: Path) -> None:
    alone, path = tmp_path / "alone.onnx", tmp_path / "m.onnx"
    model = network_file(PHOTOGRAPHS)
    onnx.save(model, str(alone))
    put_ends(model, Ends(preprocess=True, softmax=True), Usage((), PHOTOGRAPHS))
    nodes = {node.name: node for node in model.graph.node}
    if spoil == "corner":
        found = nodes["preprocess.resized"].attribute
        (attribute,) = [a for a in found if a.name == "coordinate_transformation_mode"]
        attribute.s = b"asymmetric"
    elif spoil == "softmax":
        nodes["softmax"].attribute[0].i = 0
    else:
        name = {"mean": "preprocess.mean", "size": "preprocess.cut_size", "logits": "table"}[spoil]
        (constant,) = [c for c in model.graph.initializer if c.name == name]
        value = numpy_helper.to_array(constant)
        wrong = -value if spoil == "logits" else (value * 0.8).astype(value.dtype)
        constant.CopyFrom(numpy_helper.from_array(wrong, name))
    onnx.save(model, str(path))
    pictures = [smooth(70, 90, seed=seed) for seed in range(8)]
    prepared = np.stack([PHOTOGRAPHS.prepared(Image.fromarray(p)) for p in pictures])
    batch = (torch.from_numpy(prepared), torch.zeros(8, dtype=torch.int64))
    shown = Shown(Halves(), lambda: [batch], lambda: iter(pictures), PHOTOGRAPHS)
    ends = Ends(preprocess=True, softmax=True)
    try:
        why = ends_report(alone, path, ends, shown, RUNTIME).disagreement
    except ExportError as error:
        why = str(error)
    assert message in why


@pytest.mark.usefixtures("untimed")
def test_a_file_that_prepares_otherwise_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "MOST_LEVELS", -1.0)
    with pytest.raises(ExportError, match=r"resized otherwise than qtool does.*not written"):
        pipeline.export(run, output=tmp_path / "m.onnx", preprocess=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.export.json"]


def test_vectors_are_no_pictures_to_prepare(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    example = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    section = {"weights": {"bits": 4}, "activations": {"bits": 8}}
    model = qtool.prepare(network, section, example).eval()
    model(example)
    said = qtool.export_onnx(
        qtool.convert(model),
        example,
        tmp_path / "m.onnx",
        classes=["a", "b", "c"],
        preprocess=GRAY.model_dump(),
    )
    assert said["outputs"] == ["logits"]
    with pytest.raises(InputError, match="--preprocess"):
        put_ends(onnx.load(tmp_path / "m.onnx"), Ends(preprocess=True), Usage((), GRAY))
    with pytest.raises(ValueError, match="mean"):
        qtool.export_onnx(model, example, tmp_path / "x.onnx", preprocess={"std": [1.0]})
