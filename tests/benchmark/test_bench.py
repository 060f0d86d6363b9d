"""Files are timed beside the same network in float, which is read from the file alone."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import qtool
from qtool.benchmark.bench import bench_files
from qtool.errors import ExportError, InputError
from qtool.export.proof.float_model import dequantized
from qtool.export.proof.in_turn import times_in_turn
from qtool.export.proof.unrounded import unrounded
from qtool.export.targets.onnxruntime import OnnxRuntime
from tests.kit import shell

IMAGES = torch.randn(4, 1, 12, 12, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Convolutions, a pooling, an addition and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 3]."""
        x = torch.relu(self.conv1(x))
        x = torch.max_pool2d(torch.relu(self.conv2(x) + x), 2)
        return self.fc(x.mean((2, 3)))


class Padded(nn.Module):
    """A shortcut with more channels, of zeros, as in the ResNets of small images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, 3]."""
        x = nn.functional.silu(self.conv1(x))
        x = self.conv2(x) + nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.fc(torch.relu(x).mean((2, 3)))


def export(network: nn.Module, path: Path, **activations: object) -> nn.Module:
    """Export a network with 4 bits, and return its integer model."""
    section = {"weights": {"bits": 4}, "activations": {"bits": 4, **activations}}
    integer = qtool.convert(qtool.prepare(network, section, IMAGES).eval())
    qtool.export_onnx(integer, IMAGES, path)
    return integer


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("bench") / "net.onnx"
    return export(Residual(), path), path


def test_the_float_form_of_a_file_is_the_network_with_nothing_rounded(
    exported: tuple[nn.Module, Path],
) -> None:
    refuse_differing(*exported)


@pytest.mark.parametrize("grid", ["auto", "asymmetric"])
def test_zeros_around_codes_are_zeros_in_float(grid: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    integer = export(Padded(), tmp_path / "net.onnx", grid=grid)
    nodes = onnx.load(str(tmp_path / "net.onnx")).graph.node
    assert any(node.op_type == "Pad" and node.output[0].endswith("codes") for node in nodes)
    refuse_differing(integer, tmp_path / "net.onnx")


def refuse_differing(integer: nn.Module, path: Path) -> None:
    """Refuse a file whose float form is not its integer model with nothing rounded."""
    runtime = OnnxRuntime()
    plain = unrounded(onnx.load(str(path)), runtime)
    (found,) = runtime.open(plain.SerializeToString()).run({"images": IMAGES.numpy()}).values()
    expected = dequantized(integer)(IMAGES).detach().numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.asarray(found, np.float32), expected, rtol=1e-4, atol=1e-5)
    operators = {node.op_type for node in plain.graph.node}
    assert not operators & {"QuantizeLinear", "DequantizeLinear", "Clip"}
    onnx.checker.check_model(plain, full_check=True)


def test_every_file_is_timed_for_every_number_of_threads_and_images(
    exported: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    _, path = exported
    found = bench_files(
        {"a": path, "b": path}, tmp_path, threads=[1, 2], batches=[1, 3], rounds=3, profile=True
    )
    for model in found.models:
        cases = [(timing.threads, timing.batch) for timing in model.timings]
        assert cases == [(1, 1), (1, 3), (2, 1), (2, 3)]
        for timing in model.timings:
            assert timing.float_ is not None
            assert timing.static is not None
            for spread in (timing.exported, timing.float_, timing.static):
                assert 0 < spread.low <= spread.median <= spread.high
            rate = timing.images_per_second * timing.exported.median
            assert rate == pytest.approx(1000 * timing.batch)
        assert sum(row.share for row in model.operators) == pytest.approx(1)
        named = {(row.name.split("/")[0], row.operator) for row in model.operators}
        assert {("conv1", "QLinearConv"), ("conv2", "QLinearConv"), ("fc", "QGemm")} <= named


def test_runs_that_are_taken_in_turn_all_count_but_the_first() -> None:
    calls: list[str] = []
    times = times_in_turn(
        [lambda: calls.append("a"), lambda: calls.append("b")], rounds=5, threads=1
    )
    assert calls == ["a", "b"] * 8
    assert [len(taken) for taken in times] == [5, 5]


def test_a_file_of_a_fixed_batch_takes_that_one(
    exported: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    integer, _ = exported
    path = tmp_path / "two.onnx"
    qtool.export_onnx(integer, IMAGES, path, batch=2)
    folder = tmp_path / "scratch"
    folder.mkdir()
    with pytest.raises(InputError, match="takes 2 images at once; give that as --batch"):
        bench_files({"two": path}, folder, rounds=2)


def test_where_the_float_form_cannot_be_told_the_file_alone_is_timed(tmp_path: Path) -> None:
    taken = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 4])
    given = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4])
    graph = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["logits"])], "g", [taken], [given]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = tmp_path / "float.onnx"
    onnx.save(model, str(path))
    with pytest.raises(ExportError, match="no value is quantized"):
        unrounded(model, OnnxRuntime())
    (found,) = bench_files({"f": path}, tmp_path, rounds=2).models
    assert found.timings[0].float_ is None
    assert found.timings[0].static is None
    assert found.notes == [
        "no time of float: no value is quantized with QuantizeLinear, so that nothing is known of "
        "it in float"
    ]


def test_the_command_prints_what_it_measured(exported: tuple[nn.Module, Path]) -> None:
    _, path = exported
    code, out, _ = shell("bench", str(path), "--rounds", "2", "--json")
    said = json.loads(out)
    assert code == 0
    assert list(said) == ["processor", "cores", "runtime", "version", "rounds", "models"]
    assert list(said["models"][0]) == ["model", "file_bytes", "timings"]
    keys = ["threads", "batch", "exported", "float", "static", "images_per_second"]
    assert list(said["models"][0]["timings"][0]) == keys
    code, out, _ = shell("bench", str(path), "--rounds", "2", "--threads", "all", "--profile")
    assert code == 0
    assert "own int8" in out
    assert "QLinearConv" in out


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["none.onnx"], "no such file; qtool export RUN --output none.onnx makes it"),
        (["x.onnx", "--threads", "0"], "whole numbers from 1, such as 1,2, or all"),
        (["x.onnx", "--batch", "a"], "'a' is not a list of whole numbers from 1"),
    ],
)
def test_wrong_input_is_refused(argv: list[str], why: str) -> None:
    code, out, err = shell("bench", *argv)
    assert (code, out) == (2, "")
    assert why in " ".join(err.replace("│", " ").split())
