"""Each kind of join in a file: the kernel that the runtime takes, and codes as in the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx
import pytest
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.targets.target import Array
from qtool.export.writing.on_codes import keep_codes
from qtool.export.writing.qdq_joins import qdq_join
from qtool.export.writing.trace import Call, traced
from qtool.export.writing.weights import to_proto
from qtool.graph.sites.call_sites import CallSite
from qtool.integer.at_site import AtSite
from qtool.integer.depthwise import IntegerNorm
from qtool.integer.joins import at_site
from qtool.integer.site_specs import SiteGrid, SiteKind, SiteSpec
from qtool.numerics.grid import Kind

Grid = tuple[int, Kind, float, int]  # bits, grid, scale, zero point
SIGNED: Grid = (8, "full", 0.0231, 0)
OTHER: Grid = (8, "full", 0.0157, 0)
BYTES: Grid = (8, "unsigned", 0.0129, 0)
FOUR: Grid = (4, "unsigned", 0.0871, 0)
UNIT: Grid = (8, "unsigned", 1 / 255, 0)
HARD: Grid = (8, "asymmetric", 3 / 96, 96)
IMAGES = torch.randn(3, 8, 6, 6, generator=torch.Generator().manual_seed(0))


def grid_at(site: CallSite, grid: Grid, top: int | None = None) -> SiteGrid:
    return SiteGrid(str(site), grid[0], grid[1], top=top)


def made(
    kind: SiteKind,
    function: str,
    inputs: list[Grid],
    output: Grid,
    top: int | None = None,
    **facts: object,
) -> AtSite:
    """Return a join with its tensors."""
    site, norm = CallSite("", function, 0), str(facts.pop("norm", ""))
    operands = tuple(grid_at(CallSite("", "input", n), grid) for n, grid in enumerate(inputs))
    join = at_site(SiteSpec(site, kind, grid_at(site, output, top), operands, norm, facts))
    for place, grid in enumerate(inputs):
        join.input_scales[place], join.input_zero_points[place] = grid[2:]
    join.scale.fill_(output[2])
    join.zero_point.fill_(output[3])
    return join


def norm(x: Tensor) -> Tensor:
    return F.batch_norm(x, torch.zeros(8), torch.ones(8))


def with_gains(join: AtSite) -> AtSite:
    assert isinstance(join, IntegerNorm)
    join.codes.copy_(torch.tensor([-127, 90, 3, 0, 127, -5, 60, 31]))
    join.weight_scale.copy_(torch.linspace(0.003, 0.011, 8))
    join.bias.copy_(torch.arange(-4, 4) * 997)
    return join


Function = Callable[..., Tensor]
Case = tuple[AtSite, Function, str, list[str]]  # join, call, kernel, what is not written
CASES: dict[str, Case] = {
    "add": (made("add", "add", [SIGNED, OTHER], SIGNED), torch.add, "QLinearAdd", []),
    "add and ReLU": (
        made("add", "add", [OTHER, SIGNED], BYTES), torch.add, "QLinearAdd", ["Relu", "Clip"],
    ),
    "add and ReLU6": (
        made("add", "add", [SIGNED, BYTES], BYTES, 200), torch.add, "QLinearAdd", ["Relu"],
    ),
    "mul": (made("mul", "mul", [SIGNED, UNIT], OTHER), torch.mul, "QLinearMul", []),
    "cat": (
        made("cat", "cat", [SIGNED, SIGNED], SIGNED), torch.cat, "QLinearConcat", ["Clip"],
    ),
    "mean": (
        made("global_pool", "avg_pool", [BYTES], OTHER),
        lambda x: x.mean((2, 3)), "QLinearGlobalAveragePool", ["ReduceMean"],
    ),
    "adaptive pooling": (
        made("global_pool", "avg_pool", [SIGNED], OTHER),
        lambda x: F.adaptive_avg_pool2d(x, 1), "QLinearGlobalAveragePool", ["ReduceMean"],
    ),
    "average pooling": (
        made("depthwise", "avg_pool", [SIGNED], OTHER,
             kernel=2, stride=(2, 2), padding=0, channels=8),
        F.avg_pool2d, "QLinearConv", ["AveragePool", "QLinearAveragePool"],
    ),
    "norm": (
        with_gains(made("depthwise", "batch_norm", [SIGNED], BYTES, norm="bn", channels=8)),
        norm, "QLinearConv", ["BatchNormalization"],
    ),
    "sigmoid": (
        made("sigmoid", "sigmoid", [SIGNED], UNIT), torch.sigmoid, "QLinearSigmoid", [],
    ),
    "silu": (made("silu", "silu", [SIGNED], OTHER), F.silu, "QLinearSigmoid", ["Sigmoid"]),
    "hardswish": (
        made("hardswish", "hardswish", [HARD], OTHER),
        F.hardswish, "QLinearMul", ["HardSwish", "HardSigmoid"],
    ),
    "ReLU of a value": (
        made("requantize", "relu", [SIGNED], FOUR), F.relu, "QLinearAdd", ["Relu"],
    ),
    "clip of a value": (
        made("requantize", "clip", [SIGNED], FOUR, 11), lambda x: F.hardtanh(x, 0.0, 0.96),
        "QLinearAdd", [],
    ),
}  # fmt: skip


class Joined(nn.Module):
    """Joins of a model's input, and of the input's opposite, each on their grids."""

    def __init__(self, form: Callable[[AtSite], nn.Module]) -> None:
        super().__init__()
        self.joins = nn.ModuleDict()
        for name, (join, _, _, _) in CASES.items():
            parts = zip(join.spec.inputs, join.input_scales, join.input_zero_points, strict=True)
            grids = [
                made("rounded", "input", [], (g.bits, g.grid, float(s), int(z)))
                for g, s, z in parts
            ]
            self.joins[name] = nn.ModuleList(form(part) for part in (join, *grids))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        for name, parts in self.joins.items():
            assert isinstance(parts, nn.ModuleList)
            join, *grids = cast(list[AtSite], list(parts))
            call = CASES[name][1]
            given = zip(grids, (x, -x), strict=False)
            values = [grid.at(torch.clone, (image,), {}) for grid, image in given]
            args = (values,) if call is torch.cat else tuple(values)
            args += (2,) if call is F.avg_pool2d else ()
            found[name] = join.at(call, args, {})
        return found


@dataclass
class File:
    """What the runtime makes of the joins: its graph, and the values that it gives."""

    graph: onnx.GraphProto
    values: dict[str, Array]

    def before(self, name: str) -> list[str]:
        """Return the operators behind an output, from the last one on."""
        found: list[str] = []
        waiting = [name]
        while waiting:
            node = next((n for n in self.graph.node if waiting[0] in n.output), None)
            waiting = waiting[1:] + (list(node.input) if node is not None else [])
            found += [node.op_type] if node is not None else []
        return found


@pytest.fixture(scope="module")
def file() -> File:
    net = Joined(lambda join: qdq_join(join, "exact"))
    with torch.no_grad():
        graph = traced(net, Call(net, IMAGES, None), 18)
    keep_codes(graph.graph)
    RemoveUnusedNodesPass()(graph)
    proto = to_proto(graph)
    values = OnnxRuntime().open(proto.SerializeToString()).run({"images": IMAGES.numpy()})
    return File(OnnxRuntime().optimized(proto), values)


@pytest.fixture(scope="module")
def wanted() -> dict[str, Tensor]:
    return Joined(lambda join: join)(IMAGES)


@pytest.mark.parametrize("name", CASES)
def test_a_join_is_one_kernel_between_bytes(file: File, name: str) -> None:
    _, _, kernel, gone = CASES[name]
    last, *others = file.before(name)
    assert last == "DequantizeLinear"
    assert kernel in others
    assert "DequantizeLinear" not in others
    assert not set(gone) & set(others)


@pytest.mark.parametrize("name", CASES)
def test_its_codes_are_those_of_the_model(file: File, wanted: dict[str, Tensor], name: str) -> None:
    expected = wanted[name].numpy()
    assert len(np.unique(expected)) > 8
    assert np.array_equal(file.values[name], expected)
