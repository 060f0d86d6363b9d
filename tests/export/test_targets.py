"""Every target: a file is written for it, described, and gives in its runtime what it should."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.errors import ExportError, InputError, MissingRuntimeError
from qtool.export.proof import gate
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.targets.target import TARGETS, Library, Runtime, Target
from qtool.inspection.onnx import inspect_onnx
from qtool.integer.layers import integer_layers
from qtool.stopping import Stopped, heeding_signals
from tests.kit import float_net

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
LAYERS = {"conv1": 1, "conv2": 2, "conv3": 3, "conv4": 4, "fc": 8}  # name -> bits of its weight
ROUNDED = {"conv2": {"grid": "asymmetric"}, "conv3": {"bits": 1}, "conv4": {"rounding": "ceil"}}
FILES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **{f"{bits}-bit weights": ({"bits": bits}, {"bits": 4}) for bits in LAYERS.values()},
    "asymmetric": ({"bits": 4}, {"bits": 4, "grid": "asymmetric"}),
    "bipolar": ({"bits": 4}, {"bits": 1, "grid": "mid_rise"}),
    "ceil": ({"bits": 4}, {"bits": 4, "rounding": "ceil"}),
}


class FiveLayers(nn.Module):
    """Four convolutions and a head, [B, 3, 8, 8] to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3),
            nn.Conv2d(8, 8, 3),
        )
        self.conv4, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = torch.relu(layer(x))
        return self.fc(x.flatten(1))


def converted(net: nn.Module, section: dict[str, Any]) -> nn.Module:
    """Return the integer model of a network that was prepared, and not trained."""
    model = qtool.prepare(net, section, IMAGES).eval()
    qtool.round_biases(model)
    return qtool.convert(model)


def expected_bits(target: Target, bits: int) -> int:
    """Return how many bits a code of a layer takes in a target's file."""
    widths = {"int8": 8, "int4": 4, "int2": 2, "qonnx": 32}
    native = widths.get(target.weights, bits)
    return bits if target.packed else next(n for n in (native, 4, 8) if n >= bits)


@pytest.fixture(scope="module")
def of_all_widths() -> nn.Module:
    torch.manual_seed(0)
    overrides = [
        {"match": name, "weights": {"bits": bits}, "activations": ROUNDED.get(name, {})}
        for name, bits in LAYERS.items()
    ]
    activations = {"bits": 4, "place": "layer_inputs"}
    weights = {"bits": 4}
    section = {"weights": weights, "activations": activations, "overrides": overrides}
    return converted(FiveLayers(), section)


class TargetTestCase:
    """What holds of every target: a file is written, says what it is, and is right."""

    def check(self, target: str, integer: nn.Module, path: Path, *, batch: int | None) -> None:
        given = TARGETS[target]()
        described = qtool.export_onnx(integer, IMAGES, path, target, batch=batch)
        self.agrees(given, integer, path, batch)
        self.holds_the_codes(given, integer, path, described)
        self.says_what_it_is(target, path, described)

    def agrees(self, target: Target, integer: nn.Module, path: Path, batch: int | None) -> None:
        session = target.runtime.open(path)
        assert session.batch == (batch or target.batch)
        with torch.no_grad():
            expected = integer(IMAGES)
        # six images are two batches of four, of which the last is filled up
        torch.testing.assert_close(gate.run(session, IMAGES), expected, rtol=1e-4, atol=1e-5)

    def holds_the_codes(
        self, target: Target, integer: nn.Module, path: Path, described: dict[str, Any]
    ) -> None:
        layers = integer_layers(integer)
        tensors = {layer["name"]: layer["codes"] for layer in described["layers"]}
        codes = sum(layer.codes.numel() for layer in layers.values())
        assert gate.check_codes(path, integer, tensors, target.runtime) == codes
        for said in described["layers"]:
            weights = layers[said["name"]].codes.numel()
            bits = expected_bits(target, said["weight_bits"])
            last = 56 if target.packed else 7  # the last group, or byte, is not full
            assert 8 * said["packed_bytes"] <= weights * bits + last
            narrower = target.packed or target.weights in ("int4", "int2")  # by the codes there are
            assert narrower or weights * bits <= 8 * said["packed_bytes"]

    def says_what_it_is(self, target: str, path: Path, described: dict[str, Any]) -> None:
        found = inspect_onnx(path)
        assert described["target"] == target
        assert found.problems == []
        assert [row.layer for row in found.layers] == [la["name"] for la in described["layers"]]
        assert all("integer_kernel" in layer for layer in described["layers"])
        assert onnx.load(str(path)).opset_import[0].version == TARGETS[target]().opset


class TestTargets(TargetTestCase):
    """All that are installed."""

    @each_target
    def test_a_file_with_every_width_and_rounding_is_right(
        self, name: str, of_all_widths: nn.Module, tmp_path: Path
    ) -> None:
        self.check(name, of_all_widths, tmp_path / "m.onnx", batch=4)

    @pytest.mark.slow
    @pytest.mark.parametrize("of", FILES)
    @each_target
    def test_files_of_each_width_and_rounding_are_right(
        self, name: str, of: str, tmp_path: Path
    ) -> None:
        weights, activations = FILES[of]
        section = {"weights": weights, "activations": activations | {"place": "layer_inputs"}}
        self.check(name, converted(float_net(), section), tmp_path / "m.onnx", batch=None)


@each_target
def test_a_runtime_names_itself_and_refuses_what_it_cannot_load(name: str, tmp_path: Path) -> None:
    runtime = TARGETS[name]().runtime
    (tmp_path / "junk.onnx").write_bytes(b"junk")

    assert runtime.name
    assert runtime.version[0].isdecimal()
    for given in (tmp_path / "junk.onnx", b"junk"):
        with pytest.raises(InputError, match=f"{runtime.title} cannot load it"):
            runtime.open(given)


def test_threads_sleep_between_runs() -> None:
    """Spinning takes a processor for 8 ms after each run, from whatever prepares the next batch."""
    wide = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 21]>'
        "g (float[512, 512] x) => (float[512, 512] y) { y = MatMul(x, x) }"
    )
    session, x = OnnxRuntime().open(wide.SerializeToString()), np.zeros((512, 512), np.float32)
    taken = []
    for _ in range(5):
        session.run({"x": x})
        start = time.process_time()
        time.sleep(0.02)
        taken.append(time.process_time() - start)
    assert min(taken) < 0.004


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


def test_a_runtime_that_is_too_old_or_broken_is_refused() -> None:
    def broken() -> Runtime:
        raise ImportError("libreader.so: cannot open")

    newer = Target(opset=21, library=Library("onnxruntime", "99.2", "Reader"), run_in=OnnxRuntime)
    torn = Target(opset=21, library=Library("onnxruntime", "1.2", "Reader"), run_in=broken)

    with pytest.raises(MissingRuntimeError, match=r"is older than 99\.2.*onnxruntime>=99\.2"):
        _ = newer.runtime
    with pytest.raises(MissingRuntimeError, match=r"cannot be loaded: libreader\.so"):
        _ = torn.runtime


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)]
)
def test_a_signal_while_a_runtime_is_loaded_is_no_broken_runtime(
    number: signal.Signals, ends: type[BaseException]
) -> None:
    def asked() -> Runtime:
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as error:  # as extension modules do
            raise ImportError("initialization failed") from error
        return OnnxRuntime()

    target = Target(opset=21, library=Library("onnxruntime", "1.2", "Reader"), run_in=asked)

    with heeding_signals(), pytest.raises(ends):
        _ = target.runtime


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


@pytest.mark.parametrize("first", ["onnxruntime", "openvino", "web", "target"])
def test_any_file_of_a_target_may_be_loaded_first(first: str) -> None:
    code = (
        f"import qtool.export.targets.{first};"
        "from qtool.export.targets.target import TARGETS;"
        "print(*TARGETS.names())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.stderr == ""
    assert ended.stdout.split() == TARGETS.names()
