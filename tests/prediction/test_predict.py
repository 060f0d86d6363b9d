"""Pictures and an ONNX file written by hand, which tells the brightest of their quarters."""

import csv
import json
import math
import re
import resource
import subprocess
import sys
import venv
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from qtool import uses
from qtool.errors import InputError
from qtool.images.preprocess import squeezed
from qtool.images.usage import Usage
from qtool.prediction.integer_model import classifier_of
from qtool.prediction.predict import predict_onnx, predicted
from tests.kit import as_json, refused, shell

NAMES = ("top left", "top right", "bottom left", "bottom right")
RULE = squeezed(4, (0.5,), (0.25,), gray=True)
FULL = Usage(NAMES, RULE)
GAIN = 3.0  # logits of a quarter: its mean after normalisation times this


def weights() -> np.ndarray:
    """[16, 4]: each class is the mean of its quarter of 4 x 4 pixels."""
    made = np.zeros((4, 4, 4), np.float32)
    for number in range(4):
        row, column = 2 * (number // 2), 2 * (number % 2)
        made[row : row + 2, column : column + 2, number] = GAIN / 4
    return made.reshape(16, 4)


def write_model(
    path: Path,
    usage: Usage = FULL,
    *,
    batch: int | str = "batch",
    shape: tuple[int, ...] = (1, 4, 4),
    metadata: dict[str, str] | None = None,
    table: np.ndarray | None = None,
    second_input: bool = False,
) -> Path:
    table = weights() if table is None else table
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, *shape])]
    if second_input:
        inputs.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [batch]))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, table.shape[1]])]
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "table"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(table, "table")]
    graph = helper.make_graph(nodes, "by_hand", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for key, value in (usage.metadata() if metadata is None else metadata).items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return path


def quarter(number: int, size: int = 4, bright: int = 240, dark: int = 40) -> np.ndarray:
    made = np.full((size, size), dark, np.uint8)
    half = size // 2
    row, column = half * (number // 2), half * (number % 2)
    made[row : row + half, column : column + half] = bright
    return made


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(quarter(number)).save(folder / f"{number}.png")
    Image.fromarray(quarter(2, size=8)).convert("RGBA").save(folder / "below" / "large.png")
    return folder


def test_classes_come_best_first_with_the_shares_of_a_softmax(
    pictures: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m.onnx")
    told = predict_onnx(model, [pictures])
    assert [Path(one.file).name for one in told.images] == [
        "0.png", "1.png", "2.png", "3.png", "large.png",
    ]  # fmt: skip
    best = [one.classes[0] for one in told.images]
    assert [(one.name, one.index) for one in best] == [
        *((name, number) for number, name in enumerate(NAMES)),
        (NAMES[2], 2),
    ]
    bright, dark = (GAIN * (level / 255 - 0.5) / 0.25 for level in (240, 40))
    share = np.exp(bright) / (np.exp(bright) + 3 * np.exp(dark))
    for one in told.images[:-1]:  # edges of the large one are blurred as it is made smaller
        assert one.classes[0].share == pytest.approx(share, rel=1e-5)
        assert [c.share for c in one.classes[1:]] == pytest.approx([(1 - share) / 3] * 3, rel=1e-4)
        assert sum(c.share for c in one.classes) == pytest.approx(1)
    assert [c.index for c in told.images[3].classes] == [3, 0, 1, 2]  # equal ones by number
    assert "failed" not in told.to_json()


def test_each_of_several_classes_has_a_share_of_its_own(pictures: Path, tmp_path: Path) -> None:
    """The sigmoid of its logit: 1 / (1 + exp(-x)), whatever the others are."""
    model = write_model(tmp_path / "m.onnx", replace(FULL, several=True))
    result = predict_onnx(model, [pictures / "1.png"], top=4)
    alone = predict_onnx(write_model(tmp_path / "one.onnx"), [pictures / "1.png"], top=4)
    mean = {True: (240 / 255 - 0.5) / 0.25, False: (40 / 255 - 0.5) / 0.25}
    for one in result.images[0].classes:
        logit = GAIN * mean[one.index == 1]
        assert one.share == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)
    assert sum(one.share for one in alone.images[0].classes) == pytest.approx(1)


def test_files_are_told_in_the_order_given_and_folders_sorted(
    pictures: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m.onnx")
    told = predict_onnx(model, [pictures / "3.png", pictures / "below", pictures / "0.png"], top=1)
    assert [one.classes[0].index for one in told.images] == [3, 2, 0]
    assert all(len(one.classes) == 1 for one in told.images)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_a_fixed_batch_is_filled_up(batch: int, pictures: Path, tmp_path: Path) -> None:
    free, fixed = write_model(tmp_path / "m.onnx"), write_model(tmp_path / "f.onnx", batch=batch)
    told = predict_onnx(fixed, [pictures])
    assert told.images == predict_onnx(free, [pictures]).images


def test_json_on_the_command_line_is_what_the_contract_names(
    pictures: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m.onnx")
    code, out, err = shell("predict", str(model), str(pictures / "1.png"), "--top", "2", "--json")
    assert (code, err) == (0, "")
    said = as_json(out)
    assert list(said) == ["model", "images"]
    assert said["model"] == str(model)
    assert list(said["images"][0]) == ["file", "classes"]
    assert [list(one) for one in said["images"][0]["classes"]] == [["name", "index", "share"]] * 2
    assert said["images"][0]["classes"][0]["name"] == "top right"


def test_the_table_and_the_csv_file_hold_the_same(pictures: Path, tmp_path: Path) -> None:
    model, lines = write_model(tmp_path / "m.onnx"), tmp_path / "new" / "told.csv"
    code, out, _ = shell("predict", str(model), str(pictures), "--top", "2", "--csv", str(lines))
    assert code == 0
    rows = list(csv.DictReader(lines.read_text().splitlines()))
    assert [list(rows[0]), len(rows)] == [["file", "rank", "class", "index", "share"], 10]
    assert [row["class"] for row in rows[::2]] == [*NAMES, NAMES[2]]
    assert [row["rank"] for row in rows[:3]] == ["1", "2", "1"]
    for row in rows:
        assert row["class"] in out
        assert f"{100 * float(row['share']):.2f} %" in out


@pytest.mark.parametrize("as_table", [True, False])
def test_broken_images_are_named_and_the_others_go_on(
    as_table: bool, pictures: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m.onnx")
    (pictures / "1.png").write_bytes(b"no image")
    (pictures / "2.png").write_bytes((pictures / "3.png").read_bytes()[:60])
    code, out, err = shell("predict", str(model), str(pictures), *([] if as_table else ["--json"]))
    assert code == 1
    assert "error: 2 of 5 images could not be classified" in err
    assert f"{pictures / '1.png'}: cannot be read as an image" in err
    assert "Traceback" not in err
    if as_table:
        assert "top left" in out
        return
    said = as_json(out)
    assert [Path(one["file"]).name for one in said["images"]] == ["0.png", "3.png", "large.png"]
    assert [Path(one["file"]).name for one in said["failed"]] == ["1.png", "2.png"]
    assert all("cannot be read" in one["why"] for one in said["failed"])


def test_no_table_is_shown_where_nothing_was_classified(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")
    (tmp_path / "1.png").write_bytes(b"no image")
    code, out, err = shell("predict", str(model), str(tmp_path / "1.png"))
    assert (code, out) == (1, "")
    assert "error: 1 of 1 images could not be classified" in err


def test_numbers_that_are_not_finite_are_no_classes(pictures: Path, tmp_path: Path) -> None:
    table = weights()
    table[:, 0] = np.inf
    model = write_model(tmp_path / "m.onnx", table=table)
    told = predict_onnx(model, [pictures / "0.png"])
    assert not told.images
    assert "not finite" in told.failed[0].why


def test_a_picture_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # seen after a quarter turn to the right: top left goes to top right
    Image.fromarray(quarter(0)).save(tmp_path / "x.png", exif=exif)
    told = predict_onnx(write_model(tmp_path / "m.onnx"), [tmp_path / "x.png"])
    assert told.images[0].classes[0].name == "top right"


def test_classes_without_names_are_numbers(pictures: Path, tmp_path: Path) -> None:
    told = predict_onnx(write_model(tmp_path / "m.onnx", Usage((), RULE)), [pictures / "3.png"])
    assert told.images[0].classes[0].name == "3"


def bytes_of_any_size(path: Path) -> Path:
    """A file that takes uint8 [B, H, W, 1] and tells the brighter half: left or right."""
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Shape", ["images"], ["width"], start=2, end=3),
        helper.make_node("Div", ["width", "two"], ["middle"]),
        helper.make_node("Slice", ["numbers", "zero", "middle", "columns"], ["left"]),
        helper.make_node("Slice", ["numbers", "middle", "width", "columns"], ["right"]),
        helper.make_node("ReduceMean", ["left", "axes"], ["a"], keepdims=0),
        helper.make_node("ReduceMean", ["right", "axes"], ["b"], keepdims=0),
        helper.make_node("Concat", ["a", "b"], ["logits"], axis=1),
    ]
    constants = {"two": [2], "zero": [0], "columns": [2], "axes": [1, 2]}
    graph = helper.make_graph(
        nodes,
        "bytes",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["b", "h", "w", 1])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 2])],
        [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    for key, value in Usage(("left", "right"), RULE).metadata().items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))
    return path


def test_a_file_that_takes_bytes_gets_pictures_of_any_size_as_they_are(tmp_path: Path) -> None:
    model, files = bytes_of_any_size(tmp_path / "m.onnx"), []
    for place, (height, width) in enumerate([(5, 8), (5, 8), (3, 20), (9, 2)]):
        picture = np.zeros((height, width), np.uint8)
        picture[:, width // 2 :] = 9 if place % 2 else 0
        picture[:, : width // 2] = 0 if place % 2 else 9
        files.append(tmp_path / f"{place}.png")
        Image.fromarray(picture).save(files[-1])
    told = predict_onnx(model, files)
    assert [one.classes[0].name for one in told.images] == ["left", "right", "left", "right"]
    share = 1 / (1 + np.exp(-9.0))
    assert [one.classes[0].share for one in told.images] == pytest.approx([share] * 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": {}}, "does not say how images are prepared.*export it with qtool export"),
        ({"metadata": {"qtool.preprocess": "{}"}}, "what qtool wrote into it is damaged"),
        ({"metadata": FULL.metadata() | {"qtool.classes": "7"}}, "is damaged"),
        ({"usage": Usage(NAMES[:3], RULE)}, "needed is .N, 3 classes"),
        ({"second_input": True}, "takes images, mask"),
        ({"table": np.ones((16, 1), np.float32), "usage": Usage((), RULE)}, "a number for each"),
    ],
)
def test_a_file_that_is_no_classifier_of_pictures_is_refused(
    changes: dict[str, object], message: str, pictures: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "m.onnx", **changes)
    with pytest.raises(InputError, match=message):
        predict_onnx(model, [pictures])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["gone.onnx", "pictures"], "gone.onnx: no such file"),
        (["text.onnx", "pictures"], "text.onnx: not an ONNX model"),
        (["m.onnx", "gone.png"], "gone.png: no such file or folder"),
        (["m.onnx", "empty"], "empty: holds no images"),
        (["m.onnx", "pictures", "--top", "0"], "--top"),
        (["m.onnx", "pictures", "--csv", "pictures"], "pictures: a folder; --csv names a file"),
        (["m.onnx"], "Missing argument"),
        (["empty", "pictures"], "empty: not a run folder"),
        (["text.safetensors", "pictures"], "not an integer model"),
    ],
)
def test_wrong_usage_is_said_before_any_work(
    argv: list[str], message: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    write_model(tmp_path / "m.onnx")
    (tmp_path / "empty").mkdir()
    for name in ("text.onnx", "text.safetensors"):
        (tmp_path / name).write_text("text")
    assert message in refused(tmp_path, "predict", *argv)


class Quarters(nn.Module):
    """The same network in torch."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ torch.from_numpy(weights())


def test_a_module_and_a_file_tell_the_same(pictures: Path, tmp_path: Path) -> None:
    told = predicted(lambda: classifier_of(Quarters(), FULL, "here"), [pictures])
    by_file = predict_onnx(write_model(tmp_path / "m.onnx"), [pictures])
    assert told.model == "here"
    for here, there in zip(told.images, by_file.images, strict=True):
        assert [c.name for c in here.classes] == [c.name for c in there.classes]
        shares = [[c.share for c in one.classes] for one in (here, there)]
        assert shares[0] == pytest.approx(shares[1], rel=1e-5)
    assert uses.predict(tmp_path / "m.onnx", [pictures]) == by_file


@pytest.mark.parametrize(
    ("usage", "message"),
    [
        (Usage(NAMES), "does not say how images are prepared"),
        (Usage((), RULE), "tells no classes apart"),
        (Usage(NAMES[:2], RULE), "gives no row of 2 logits"),
    ],
)
def test_a_module_that_is_no_classifier_is_refused(
    usage: Usage, message: str, pictures: Path
) -> None:
    with pytest.raises(InputError, match=message):
        predicted(lambda: classifier_of(Quarters(), usage, "here"), [pictures])


WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "onnx", "onnx_ir", "onnxscript", "sklearn", "scipy"):
    sys.modules[name] = None
from qtool.cli import main
main(sys.argv[1:])
"""


def test_a_file_is_run_where_there_is_no_torch(pictures: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx")
    argv = [sys.executable, "-c", WITHOUT_TORCH, "predict", str(model), str(pictures), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    best = [one["classes"][0]["name"] for one in json.loads(done.stdout)["images"]]
    assert best == [*NAMES, NAMES[2]]
    table = subprocess.run(argv[:-1], capture_output=True, text=True, check=False)
    assert (table.returncode, table.stderr) == (0, "")
    assert "bottom right" in table.stdout


CPU_BUDGET = 0.4  # seconds of the processor beyond `import onnxruntime`
NEEDED = ("onnxruntime", "numpy", "pillow", "typer", "rich", "pydantic", "pyyaml")


def cpu_of(*argv: str) -> float:
    """Return the processor seconds of a command, the least of several runs."""
    least = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(argv, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        least = min(least, taken)
    return least


@pytest.mark.slow
def test_an_environment_without_torch_tells_classes_in_little_time(
    pictures: Path, tmp_path: Path
) -> None:
    """Builds the wheel and an environment of its own: takes a minute, and PyPI."""
    root, home = Path(__file__).parents[2], tmp_path / "venv"
    pip = (sys.executable, "-m", "pip")
    wheels = tmp_path / "wheels"
    made = subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(root)], check=False
    )
    assert made.returncode == 0
    (wheel,) = wheels.glob("qtool-*.whl")
    venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    for parts in (["--no-deps", str(wheel)], NEEDED):
        subprocess.run([python, "-m", "pip", "install", "--quiet", *parts], check=True)
    model = write_model(tmp_path / "m.onnx")
    argv = [str(home / "bin" / "qtool"), "predict", str(model), str(pictures), "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=tmp_path)
    best = [one["classes"][0]["name"] for one in json.loads(done.stdout)["images"]]
    assert best == [*NAMES, NAMES[2]]
    there = subprocess.run(
        [python, "-m", "pip", "list"], capture_output=True, text=True, check=True
    ).stdout
    assert not re.search(r"^(torch|torchvision|onnx|onnxscript|scipy)\s", there, re.MULTILINE)
    alone = cpu_of(python, "-c", "import onnxruntime")
    assert cpu_of(*argv) - alone < CPU_BUDGET
