"""Whole networks run in integers, and give every code and every logit of the integer model."""

from pathlib import Path

import pytest
import torch

import qtool
from qtool.export.proof.gate import run
from qtool.export.proof.site_codes import compare_site_codes
from qtool.export.proof.why_slow import Known, kernels_of
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.integer.converted import converted_state
from tests.benchmarks.integers import CONVOLUTIONAL, network, quantized

PX = 64
RUNTIME = OnnxRuntime()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_a_network_is_wholly_in_integers_and_exact(name: str, bits: int, tmp_path: Path) -> None:
    integer = quantized(network(name, PX), bits, PX, "every_value")
    path, state = tmp_path / "m.onnx", converted_state(integer)
    qtool.export_onnx(integer, torch.randn(2, 3, PX, PX), path)
    found = kernels_of(path, RUNTIME.optimized(path), RUNTIME, Known.of(state))

    assert found.why_slow == []
    convolutions = {spec.name for spec in state.layers if spec.kind == "Conv2d"}
    assert len(convolutions) == CONVOLUTIONAL[name]
    assert convolutions <= found.layers
    codes = compare_site_codes(path, integer, torch.randn(8, 3, PX, PX), RUNTIME)
    assert [place for place, one in codes.items() if one.differing] == []
    images = torch.randn(64, 3, PX, PX)
    with torch.no_grad():
        expected = torch.cat([integer(part) for part in images.split(8)])
    off = (run(RUNTIME.open(path), images) - expected).abs().max()
    assert float(off) <= 1e-5 * float(expected.std())
