"""Equalization in front of depthwise layers: channels of a value with one scale get one size.

    f(W1 x) -> f(W1 x) / s,    W2 -> W2 s,    s_c = max |f(W1 x)_c| ^ share

for each channel c of what a layer makes, f a norm and a ReLU, or nothing: f(y / s) = f(y) / s for
any s > 0, so that the float network stays what it is. Of a depthwise layer W2 a channel is a row,
whose own scale takes s up: its codes stay, and what is left is that small channels of the value get
more of its levels. Other layers mix channels, and s only moves the error from the value into the
weight: there it was measured not to help (README.md), and is not done.

The share is that of the smallest error of the depthwise layer's output on calibration images, and
is taken only if the error falls on images that have not chosen it, too.

Reference: Nagel et al., 2019, arXiv:1906.04721, section 4.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from qtool.graph.inputs import Inputs
from qtool.graph.sites.frames import sites_of
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.roundings import ROUNDINGS
from qtool.post_training.activation_ranges import is_open, values_read
from qtool.post_training.outputs import channel_axis, places
from qtool.post_training.patches import of_positions, patches, product, taken
from qtool.post_training.walk import called_once, walk
from qtool.post_training.weight_scales import may_choose
from qtool.quantizers.control import in_float
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.layers import QuantLayer, hold_weight, quant_layers
from qtool.quantizers.places.placement import PlacedSite
from qtool.quantizers.sites import SiteQuantizer, quantizer_of
from qtool.reports.improvements import Applied

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
OF_SCALE = (0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3)  # of the range by the values, at each share
POSITIONS = 2048  # of a layer's output: half of them choose, half of them judge
VALUES = 2**15  # by which a range begins
MARGIN = 0.05  # by which both errors have to fall
MOST_BITS = 6  # of the value; at 8 the output was measured to come no nearer
FARTHEST = 16.0  # that a factor is from the mean of all


@dataclass(frozen=True)
class Pair:
    """A layer and the depthwise one that alone reads what it makes.

    Attributes:
        norm: between them, affine; None where there is none.
        quantizer: of the value.
    """

    first: str
    norm: BatchNorm | None
    quantizer: SiteQuantizer
    second: str


@dataclass(frozen=True)
class Found:
    """What a share comes to: s [C], the value's scale [], and the errors of the two halves."""

    share: float
    factors: Tensor
    scale: Tensor
    chosen_by: float
    judged_by: float


def pairs_of(model: nn.Module) -> list[Pair]:
    """Return the pairs of a prepared model that may be equalized, in the order of a pass."""
    state, stands, layers = prepared_state(model), sites_of(model), quant_layers(model)
    read, once = values_read(state.graph), set(called_once(model))
    found: list[Pair] = []
    for name, site in state.placement.sites.items():
        first = "" if site.maker is None else site.maker.leaf
        if name not in stands or first not in once or len(site.readers) != 1:
            continue
        (second,), quantizer = site.readers, quantizer_of(stands[name])
        alone = site.use == "layers" and len(quantizer.members) == 1 and is_open(quantizer)
        alone = alone and quantizer.known_grid.bits <= MOST_BITS
        if not (alone and _passes_factors(site) and second in once and read.get(second) == name):
            continue
        norm_name = state.recording.batch_norms.get(first)
        norm = None if norm_name is None else model.get_submodule(norm_name)
        made = layers[first].layout.channels(layers[first].weight.shape)
        if not (_is_depthwise(layers[second], made) and layers[second].source == (quantizer,)):
            continue
        if norm is None:
            if _takes_up(layers[first]):
                found.append(Pair(first, None, quantizer, second))
        elif isinstance(norm, BatchNorm) and norm.affine:
            found.append(Pair(first, norm, quantizer, second))
    return found


def _passes_factors(site: PlacedSite) -> bool:
    """Tell whether what lies between a layer and its quantizer has f(y / s) = f(y) / s."""
    if site.form == "rectified":
        return site.top is None
    return site.form == "free" and (site.site == site.maker or site.site.function == "batch_norm")


def _is_depthwise(layer: QuantLayer, channels: int) -> bool:
    """Tell whether each row of a layer reads one channel, and has a scale of its own."""
    if not isinstance(layer, nn.modules.conv._ConvNd) or channels < 2:
        return False
    return layer.groups == layer.in_channels == channels and _takes_up(layer)


def _takes_up(layer: QuantLayer) -> bool:
    """Tell whether the scales of a weight follow when its rows are multiplied by numbers."""
    quantizer = layer.weight_quantizer
    return quantizer is None or (quantizer.scale.ndim > 0 and may_choose(quantizer))


@torch.no_grad()
def equalize(model: nn.Module, inputs: Inputs) -> list[Applied]:
    """Equalize the pairs of a calibrated model where that helps, in place; return what was done.

    Args:
        model: from `prepare`, in evaluation mode, nothing of it improved yet.
        inputs: calibration images.
    """
    pairs, layers = {pair.second: pair for pair in pairs_of(model)}, quant_layers(model)
    if not pairs:
        return []
    better: list[tuple[Pair, Found, Found]] = []

    def look(name: str, layer: QuantLayer, x: Tensor) -> None:
        if name not in pairs:
            return
        plain, *others = _tried(pairs[name].quantizer, layer, x)
        best = min(others, key=lambda found: found.chosen_by)
        most = 1 - MARGIN
        if best.chosen_by < most * plain.chosen_by and best.judged_by < most * plain.judged_by:
            better.append((pairs[name], plain, best))

    with in_float(model):
        walk(model, inputs, look)
    done: list[Applied] = []
    for pair, plain, best in better:
        _divide(pair, layers, best.factors)
        pair.quantizer.scale.copy_(best.scale)
        row = Applied(
            layer=pair.first,
            step="equalization",
            error_before=plain.judged_by,
            error_after=best.judged_by,
            note=f"for {pair.second}, by the largest values to the power of {best.share:g}",
        )
        done.append(row)
    return done


def factors_of(largest: Tensor, share: float) -> Tensor:
    """Return s of channels whose largest values are given, [C]; 1 for those that are only zero.

    >>> factors_of(torch.tensor([1.0, 4.0, 0.0]), 0.5)
    tensor([0.7071, 1.4142, 1.0000])
    """
    lives = largest > 0
    if not lives.any():
        return torch.ones_like(largest)
    powers = largest.pow(share)
    powers = powers / powers[lives].log().mean().exp()
    return torch.where(lives, powers.clamp(1 / FARTHEST, FARTHEST), 1.0)


def _tried(quantizer: SiteQuantizer, layer: QuantLayer, x: Tensor) -> list[Found]:
    """Return what each share comes to, for a depthwise layer and what it reads, not rounded."""
    y = layer.of_operands(x, layer.whole_weight)
    view, axes = patches(layer, x, y.shape), of_positions(layer, y).ndim - 1
    at = places(view.shape[:axes].numel(), POSITIONS).to(x.device)
    given, rows = taken(view, at, axes).flatten(2), layer.layout.rows(layer.whole_weight)
    channels = channel_axis(layer) % x.ndim
    largest = x.abs().amax([axis for axis in range(x.ndim) if axis != channels])
    wanted, grid = product(given, rows), quantizer.known_grid
    spread = [float((half - half.mean(0)).double().square().sum()) for half in wanted.chunk(2)]
    shown = places(given.numel(), VALUES).to(x.device)
    rounding = ROUNDINGS[quantizer.deployed_rounding]
    found: list[Found] = []
    for share in SHARES:
        s = factors_of(largest, share)
        even = given / s[:, None]
        by_values = quantizer.rule(even.flatten()[shown].unsqueeze(0), grid)[0]
        tried: list[tuple[float, float, Tensor]] = []
        for part in OF_SCALE:
            scale = part * by_values
            on_grid = OnGrid.by_step(grid, scale, x.new_zeros(()), rounding)
            wrong = product((on_grid.values(on_grid.codes(even)) - even) * s[:, None], rows)
            errors = [
                float((half - half.mean(0)).double().square().sum()) / max(all_of, 1e-30)
                for half, all_of in zip(wrong.chunk(2), spread, strict=True)
            ]
            tried.append((errors[0], errors[-1], scale))
        chosen_by, judged_by, scale = min(tried, key=lambda one: one[0])
        found.append(Found(share, s, scale, chosen_by, judged_by))
    return found


def _divide(pair: Pair, layers: dict[str, QuantLayer], s: Tensor) -> None:
    """Divide what the first layer of a pair makes by s [C], and let the second multiply by it."""
    first, second = layers[pair.first], layers[pair.second]
    if pair.norm is not None:
        pair.norm.weight = nn.Parameter(pair.norm.weight / s, requires_grad=False)
        pair.norm.bias = nn.Parameter(pair.norm.bias / s, requires_grad=False)
    else:
        _multiply_rows(first, 1 / s)
        if first.bias is not None:
            first.bias = nn.Parameter(first.bias / s, requires_grad=False)
    count = second.layout.channels(second.weight.shape) // len(s)
    _multiply_rows(second, s.repeat_interleave(count))


def _multiply_rows(layer: QuantLayer, by: Tensor) -> None:
    """Multiply the rows of a layer's weight by numbers [C], and fit its scales anew."""
    rows = layer.layout.rows(layer.whole_weight.detach())
    made = layer.layout.weight(rows * by.reshape(-1, *[1] * (rows.ndim - 1)))
    hold_weight(layer, torch.empty_like(layer.whole_weight).copy_(made))
    layer.fit_weight()
