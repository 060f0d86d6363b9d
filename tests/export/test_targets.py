"""Every target: a file is written for it, described, and gives in its runtime what it should."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import qtool
from qtool.errors import ExportError, InputError, MissingRuntimeError
from qtool.export.proof import gate
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.targets.target import TARGETS, Library, Runtime, Target
from qtool.inspection.onnx import inspect_onnx
from qtool.integer.layers import integer_layers
from tests.kit import Net

INSTALLED = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            not TARGETS[name]().library.is_installed(), reason=f"the runtime of {name}"
        ),
    )
    for name in TARGETS.names()
]
each_target = pytest.mark.parametrize("name", INSTALLED)
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def integer() -> torch.nn.Module:
    torch.manual_seed(0)
    section = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}
    model = qtool.prepare(Net(), section, IMAGES).eval()
    qtool.round_biases(model)
    return qtool.convert(model)


@pytest.fixture(scope="module", params=INSTALLED)
def written(
    request: pytest.FixtureRequest,
    integer: torch.nn.Module,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path, dict[str, Any]]:
    path = tmp_path_factory.mktemp(request.param) / "m.onnx"
    return request.param, path, qtool.export_onnx(integer, IMAGES, path, request.param, batch=4)


def test_a_file_gives_in_its_runtime_what_the_integer_model_gives(
    written: tuple[str, Path, dict[str, Any]], integer: torch.nn.Module
) -> None:
    name, path, described = written
    runtime = TARGETS[name]().runtime
    session = runtime.open(path)

    assert session.batch == 4  # six images are two batches, of which the last is filled up
    torch.testing.assert_close(gate.run(session, IMAGES), integer(IMAGES), rtol=1e-4, atol=1e-5)
    tensors = {layer["name"]: layer["codes"] for layer in described["layers"]}
    codes = sum(layer.codes.numel() for layer in integer_layers(integer).values())
    assert gate.check_codes(path, integer, tensors, runtime) == codes


def test_a_file_says_what_it_is_and_is_inspected(
    written: tuple[str, Path, dict[str, Any]],
) -> None:
    name, path, described = written
    found = inspect_onnx(path)

    assert described["target"] == name
    assert found.problems == []
    assert [row.layer for row in found.layers] == [la["name"] for la in described["layers"]]
    assert all("integer_kernel" in layer for layer in described["layers"])
    assert onnx.load(str(path)).opset_import[0].version == TARGETS[name]().opset


@each_target
def test_a_runtime_names_itself_and_refuses_what_it_cannot_load(name: str, tmp_path: Path) -> None:
    runtime = TARGETS[name]().runtime
    (tmp_path / "junk.onnx").write_bytes(b"junk")

    assert runtime.name
    assert runtime.version[0].isdecimal()
    for given in (tmp_path / "junk.onnx", b"junk"):
        with pytest.raises(InputError, match=f"{runtime.title} cannot load it"):
            runtime.open(given)


@each_target
def test_a_model_that_was_written_and_cannot_be_loaded_is_a_failed_export(name: str) -> None:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["x2"])
    made = onnx.helper.make_tensor_value_info("x2", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [made]))
    runtime = TARGETS[name]().runtime
    with pytest.raises(ExportError, match=rf"^{runtime.title} cannot load it: .*NoSuchOperator"):
        runtime.optimized(model)


def test_a_target_names_what_installs_its_runtime_and_can_be_listed_without_it() -> None:
    def never() -> Runtime:
        raise AssertionError("asked for")

    absent = Target(opset=21, library=Library("no_such_reader", "2.5", "Reader"), run_in=never)

    assert not absent.library.is_installed()
    said = re.escape('Reader is not installed; pip install "no_such_reader>=2.5"')
    with pytest.raises(MissingRuntimeError, match=f"^{said}$"):
        _ = absent.runtime


def test_a_runtime_that_is_too_old_or_broken_is_refused(integer: torch.nn.Module) -> None:
    def broken() -> Runtime:
        raise ImportError("libreader.so: cannot open")

    newer = Target(opset=21, library=Library("onnxruntime", "99.2", "Reader"), run_in=OnnxRuntime)
    torn = Target(opset=21, library=Library("onnxruntime", "1.2", "Reader"), run_in=broken)

    with pytest.raises(MissingRuntimeError, match=r"is older than 99\.2.*onnxruntime>=99\.2"):
        _ = newer.runtime
    with pytest.raises(MissingRuntimeError, match=r"cannot be loaded: libreader\.so"):
        _ = torn.runtime


def test_targets_are_listed_without_loading_a_runtime_or_onnx() -> None:
    program = (
        "import sys; from qtool.export.targets.target import TARGETS;"
        "made = [TARGETS[name]() for name in TARGETS.names()];"
        "print([m for m in ('onnx', 'onnxruntime', 'openvino', 'qonnx', 'torch') "
        "if m in sys.modules], len(made))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["[]", str(len(TARGETS.names()))]
