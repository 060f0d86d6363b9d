"""Fake-quantized values, bit for bit those of ONNX Runtime's and torch's own operators."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from qtool.numerics.grid import IntegerGrid
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.settings.tensors import ActivationQuantization, WeightQuantization

CHANNELS, COUNT = 64, 2_000
GRIDS = [
    IntegerGrid(bits, kind)
    for bits in (8, 4, 2)
    for kind in ("narrow", "full", "unsigned", "asymmetric")
]
each_grid = pytest.mark.parametrize("grid", GRIDS, ids=str)
each_granularity = pytest.mark.parametrize("per_channel", [False, True])


def fake_quantized(x: Tensor, scale: Tensor, zero_point: int, grid: IntegerGrid) -> Tensor:
    """Return what qtool makes of x [C, K]; scale [] or [C, 1]."""
    if grid.kind in ("narrow", "full"):
        settings: Any = WeightQuantization.model_validate({"bits": grid.bits, "range": "absmax"})
    else:
        settings = ActivationQuantization.model_validate({"bits": grid.bits, "range": "min_max"})
    made = FakeQuantize(settings, grid)
    made.scale.data = scale
    made.zero_point.fill_(zero_point)
    return made.round_to_grid(x)


def scales(per_channel: bool) -> Tensor:
    drawn = torch.rand(CHANNELS, 1, generator=torch.Generator().manual_seed(1)) * 0.3 + 0.01
    return drawn if per_channel else drawn[7, 0].clone()


def values(scale: Tensor, zero_point: int, grid: IntegerGrid) -> Tensor:
    """Return [C, K] values over the grid and beyond it, with levels, ties and their neighbours."""
    low, high = grid.qmin - zero_point - 2, grid.qmax - zero_point + 2
    steps = torch.rand(CHANNELS, COUNT, generator=torch.Generator().manual_seed(2))
    spread = (steps * (high - low) + low) * scale
    halves = torch.arange(low, high + 0.5, 0.5) * scale.expand(CHANNELS, 1)
    above, below = (torch.nextafter(halves, torch.full_like(halves, end)) for end in (9e9, -9e9))
    return torch.cat([spread, halves, above, below, torch.zeros(CHANNELS, 1)], 1)


def runtime(scale: Tensor, zero_point: int, grid: IntegerGrid) -> Callable[[Tensor], Tensor]:
    """Return QuantizeLinear, Clip and DequantizeLinear as ONNX Runtime computes them."""
    kind: Any = np.uint8 if grid.qmin == 0 else np.int8
    zero = np.full(scale.numel() if scale.ndim else (), zero_point, kind)
    held = {"s": scale.flatten().numpy() if scale.ndim else scale.numpy(), "z": zero}
    held |= {"low": np.array(grid.qmin, kind), "high": np.array(grid.qmax, kind)}
    axis = {"axis": 0} if scale.ndim else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **axis),
        helper.make_node("Clip", ["q", "low", "high"], ["clipped"]),
        helper.make_node("DequantizeLinear", ["clipped", "s", "z"], ["y"], **axis),
    ]
    graph = helper.make_graph(
        nodes,
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["c", "k"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["c", "k"])],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )

    def run(x: Tensor) -> Tensor:
        found: Any = session.run(None, {"x": x.numpy()})
        return torch.from_numpy(found[0])

    return run


def zero_of(grid: IntegerGrid) -> int:
    return (grid.qmax + 1) // 3 if grid.kind == "asymmetric" else 0


@each_granularity
@each_grid
def test_values_are_onnx_runtimes(grid: IntegerGrid, per_channel: bool) -> None:
    zero, scale = zero_of(grid), scales(per_channel)
    x = values(scale, zero, grid)
    assert x.numel() > 100_000
    found = fake_quantized(x, scale, zero, grid)
    assert torch.equal(found, runtime(scale, zero, grid)(x))
    if not per_channel:
        assert len(found.unique()) == grid.qmax - grid.qmin + 1


def torchs_own(x: Tensor, scale: Tensor, zero_point: int, grid: IntegerGrid) -> Tensor:
    if scale.ndim == 0:
        return torch.fake_quantize_per_tensor_affine(
            x, float(scale), zero_point, grid.qmin, grid.qmax
        )
    zeros = torch.full((len(scale),), zero_point, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(
        x, scale.flatten(), zeros, 0, grid.qmin, grid.qmax
    )


@each_granularity
@each_grid
def test_values_are_torchs_wherever_its_reciprocal_rounds_alike(
    grid: IntegerGrid, per_channel: bool
) -> None:
    zero, scale = zero_of(grid), scales(per_channel)
    x = values(scale, zero, grid)
    alike = torch.round(x / scale) == torch.round(x * (1 / scale))
    found, own = fake_quantized(x, scale, zero, grid), torchs_own(x, scale, zero, grid)
    assert alike.float().mean() > 0.9
    assert torch.equal(found[alike], own[alike])


@each_granularity
@each_grid
def test_values_are_torchs_everywhere_where_scales_are_powers_of_two(
    grid: IntegerGrid, per_channel: bool
) -> None:
    zero = zero_of(grid)
    scale = 2.0 ** torch.round(torch.log2(scales(per_channel)))
    x = values(scale, zero, grid)
    assert torch.equal(fake_quantized(x, scale, zero, grid), torchs_own(x, scale, zero, grid))
