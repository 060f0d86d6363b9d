"""What stands at the sites of an integer model, as torch.onnx should see it.

Between two of them a value is a DequantizeLinear with one scale of rank 0; each operator takes such
values and has QuantizeLinear, Clip where the grid ends before a byte does, and DequantizeLinear
behind it, which the runtime joins to one kernel on bytes. A zero point of 0 is a ReLU.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import onnx_ir as ir
import torch
from torch import Tensor, nn

from qtool.export.writing.qdq_modules import Ceil, QdqValues, emit
from qtool.export.writing.weights import GATE, LAYER
from qtool.graph.inputs import Inputs, tensors_in
from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.frames import call_sites_of, counts_of, install, sites_of
from qtool.integer.at_site import Args, AtSite, Function, Kwargs, Passed
from qtool.integer.depthwise import IntegerNorm, IntegerPool
from qtool.integer.joins import IntegerHardswish, IntegerSilu
from qtool.integer.site_specs import SiteSpec
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.weight_rows import WeightRows

CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)  # of one, two, three dimensions


class QdqJoin(nn.Module, ABC):
    """A join: its operator on real values of grids, and what rounds its result."""

    def __init__(self, join: AtSite, ceil: Ceil) -> None:
        """Take what stands there in the integer model."""
        super().__init__()
        self.spec, self.owner = join.spec, str(join.spec.site)
        self.values = _values_of(join, ceil)

    @abstractmethod
    def operate(self, function: Function, args: Args, kwargs: Kwargs) -> object:
        """Return the operator's result, before it is rounded."""

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> object:
        """Do the work of a call of its site."""
        made = self.operate(function, args, kwargs)
        return self.forward(made) if isinstance(made, Tensor) else made

    def forward(self, x: Tensor) -> Tensor:
        """Return real values on its grid."""
        return self.values(x) if x.is_floating_point() else x


class QdqCalled(QdqJoin):
    """The call itself, in float, of values of grids: an addition, a product, a concatenation."""

    def operate(self, function: Function, args: Args, kwargs: Kwargs) -> object:
        """Return what the function gives."""
        return function(*args, **kwargs)


class QdqRectified(QdqJoin):
    """A ReLU, or a clip from 0, which the new grid's ends do."""

    def operate(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Return the argument."""
        return _first(args, kwargs)


class QdqGlobalPool(QdqJoin):
    """The mean of each whole channel, [B, C, ...] to [B, C, 1, ...] or [B, C].

    torch.onnx would write ReduceMean, which runtimes compute in float.
    """

    def operate(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Emit GlobalAveragePool, and Flatten where the call keeps no dimensions."""
        x, made = _first(args, kwargs), function(*args, **kwargs)
        assert isinstance(made, Tensor)
        shape = (*x.shape[:2], *[1] * (x.ndim - 2))
        y = emit(self.owner, "GlobalAveragePool", "pool", [x], torch.float32, shape=shape)
        return y if made.ndim == y.ndim else y.flatten(1)


class QdqDepthwise(QdqJoin):
    """A convolution of each channel by itself."""

    codes: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor | None
    bias_scale: Tensor
    layout = WeightRows()

    def __init__(self, join: AtSite, ceil: Ceil, codes: Tensor, scale: Tensor) -> None:
        """Take what stands there, its codes, int8 [C, 1, ...], and their scales, [C]."""
        super().__init__(join, ceil)
        self.stride: tuple[int, ...] = (1,) * (codes.ndim - 2)
        self.padding: tuple[int, ...] = (0,) * (codes.ndim - 2)
        self.register_buffer("codes", codes)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", torch.zeros_like(scale).to(torch.int8))
        self.register_buffer("bias", None)
        self.register_buffer("bias_scale", join.input_scales[0] * scale)

    def operate(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Emit DequantizeLinear on codes and bias, and Conv."""
        bias, kind = self.bias, torch.float32
        inputs = [self.codes, self.weight_scale, self.weight_zero_point]
        weight = emit(self.owner, "DequantizeLinear", "weight", inputs, kind, axis=0)
        if bias is not None:
            inputs = [bias, self.bias_scale]
            bias = emit(self.owner, "DequantizeLinear", "bias", inputs, kind, axis=0)
        convolve = CONVOLUTIONS[len(self.stride) - 1]
        x, around = _first(args, kwargs), list(self.padding)
        return convolve(x, weight, bias, list(self.stride), around, groups=len(self.codes))


class QdqPool(QdqDepthwise):
    """Average pooling: codes 1, of scale 1 / (pixels of a window)."""

    def __init__(self, join: IntegerPool, ceil: Ceil, spec: SiteSpec) -> None:
        """Take what stands there, and what the call is for the images of the file."""
        channels, kernel = spec.number("channels"), spec.sizes("kernel")
        codes = torch.ones(channels, 1, *kernel, dtype=torch.int8)
        scale = join.weight_scale(kernel).expand(channels).contiguous()
        super().__init__(join, ceil, codes, scale)
        self.stride, self.padding = spec.sizes("stride"), spec.sizes("padding")


class QdqNorm(QdqDepthwise):
    """A norm that is a gain and a shift of each channel."""

    def __init__(self, join: IntegerNorm, ceil: Ceil) -> None:
        known = "dimensions" in join.spec.facts
        dimensions = join.spec.number("dimensions") if known else 2
        codes = join.codes.reshape(-1, 1, *[1] * dimensions)
        super().__init__(join, ceil, codes, join.weight_scale)
        self.bias = join.bias


class QdqSilu(QdqJoin):
    """x sigmoid(x), with sigmoid(x) rounded to steps of 1 / 255."""

    def __init__(self, join: IntegerSilu, ceil: Ceil) -> None:
        super().__init__(join, ceil)
        bytes_ = OnGrid(IntegerGrid(8, "unsigned"), join.gate_scale)
        self.gate = QdqValues(f"{self.owner}{GATE}", bytes_, ceil)

    def operate(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Emit Sigmoid, QuantizeLinear, DequantizeLinear, Mul."""
        x = _first(args, kwargs)
        return x * self.gate(torch.sigmoid(x))


class QdqHardswish(QdqJoin):
    """x hardsigmoid(x), for codes q whose zero point k is worth 3 steps of 1.

    min(q, 2k), read with scale 1 / 2k and zero point 0, is hardsigmoid of the value.
    """

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor
    gate_scale: Tensor

    def __init__(self, join: IntegerHardswish, ceil: Ceil) -> None:
        super().__init__(join, ceil)
        zero = int(join.input_zero_points[0])
        self.register_buffer("scale", join.input_scales[0].clone())
        self.register_buffer("gate_scale", join.gate_scale)
        for name, code in {"zero_point": zero, "low": 0, "high": 2 * zero}.items():
            self.register_buffer(name, torch.tensor(code, dtype=torch.uint8))

    def operate(self, function: Function, args: Args, kwargs: Kwargs) -> Tensor:
        """Emit Clip on the codes, DequantizeLinear, Mul."""
        x, owner, kind = _first(args, kwargs), f"{self.owner}{GATE}", torch.uint8
        # the codes that x was made of: `on_codes` takes this operator out of the graph again
        q = emit(owner, "QuantizeLinear", "codes", [x, self.scale, self.zero_point], kind)
        q = emit(owner, "Clip", "clip", [q, self.low, self.high], kind)
        inputs = [q, self.gate_scale, self.low]
        return x * emit(owner, "DequantizeLinear", "real_input", inputs, torch.float32)


def qdq_join(join: AtSite, ceil: Ceil, spec: SiteSpec | None = None) -> nn.Module:
    """Return what should stand, while the model is traced, where a join stands.

    Args:
        join: what stands there in the integer model.
        ceil: how rounding up is written.
        spec: what its call is for the images of the file, where that is not as it was found.
    """
    match join:
        case Passed():
            return join
        case IntegerSilu():
            return QdqSilu(join, ceil)
        case IntegerHardswish():
            return QdqHardswish(join, ceil)
        case IntegerNorm():
            return QdqNorm(join, ceil)
        case IntegerPool():
            return QdqPool(join, ceil, spec or join.spec)
    if join.spec.kind == "global_pool":
        return QdqGlobalPool(join, ceil)
    return QdqRectified(join, ceil) if _rectifies(join.spec) else QdqCalled(join, ceil)


def put_joins(
    model: nn.Module, pools: Mapping[str, SiteSpec], ceil: Ceil
) -> dict[str, QdqDepthwise]:
    """Put what is to be traced at the sites of an integer model, in place.

    Args:
        model: whose layers are what is to be traced already.
        pools: see `pools_of`.
        ceil: how rounding up is written.

    Returns:
        Joins that have codes of their own, by site.
    """
    standing, calls = sites_of(model), call_sites_of(model)
    if not calls:
        return {}
    joins: dict[CallSite, nn.Module] = {}
    for written, module in standing.items():
        assert isinstance(module, AtSite)
        joins[calls[written]] = qdq_join(module, ceil, pools.get(written))
    install(model, joins, counts_of(model))
    return {str(site): join for site, join in joins.items() if isinstance(join, QdqDepthwise)}


@torch.no_grad()
def pools_of(model: nn.Module, inputs: Inputs) -> dict[str, SiteSpec]:
    """Return what each average pooling of an integer model is for images of the inputs' size."""
    found: dict[str, SiteSpec] = {}
    pools = {n: m for n, m in sites_of(model).items() if isinstance(m, IntegerPool)}
    for site, pool in pools.items():

        def noted(
            function: Function,
            args: Args,
            kwargs: Kwargs,
            site: str = site,
            pool: IntegerPool = pool,
        ) -> Tensor:
            found[site] = pool.spec_of(function, args, kwargs)
            return IntegerPool.at(pool, function, args, kwargs)

        vars(pool)["at"] = noted
    try:
        if pools:
            inputs.first(1).call(model)
    finally:
        for pool in pools.values():
            del vars(pool)["at"]
    return found


def mark_joins(graph: ir.Graph, sites: Iterable[str]) -> None:
    """Mark the operators whose results are rounded at sites, as those are not qtool's own."""
    owners = set(sites)
    for node in graph:
        owner = node.metadata_props.get(LAYER)
        if node.op_type != "QuantizeLinear" or owner not in owners:
            continue
        given = node.inputs[0]
        maker = None if given is None else given.producer()
        if maker is not None:
            maker.metadata_props.setdefault(LAYER, owner)


def _rectifies(spec: SiteSpec) -> bool:
    """Tell whether a site's function is a ReLU or clip that the ends of its grid do."""
    output = spec.output
    if output is None or output.rounding != "half_to_even":
        return False
    function, from_zero = spec.site.function, output.grid == "unsigned" or output.bottom is not None
    return from_zero and (function == "relu" or (function == "clip" and output.top is not None))


def _values_of(join: AtSite, ceil: Ceil) -> QdqValues:
    """Return what rounds the result of a join."""
    output = join.spec.output
    assert output is not None
    owner, clips = str(join.spec.site), not _keeps_grid(join)
    return QdqValues(owner, join.output, ceil, top=output.top, bottom=output.bottom, clips=clips)


def _keeps_grid(join: AtSite) -> bool:
    """Tell whether a join puts out what it is given: a concatenation of values of its own grid."""
    return join.spec.kind == "cat" and all(
        (spec.bits, spec.grid) == (join.spec.bits, join.spec.grid)
        and bool(given.scale == join.scale)
        and bool(given.zero_point == join.zero_point)
        for spec, given in zip(join.spec.inputs, join.inputs, strict=True)
    )


def _first(args: Args, kwargs: Kwargs) -> Tensor:
    """Return the first tensor among the arguments of a call."""
    return next(tensors_in((args, dict(kwargs))))
