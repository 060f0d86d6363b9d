"""Ranges of activations by what their readers give: the scale of the smallest error of outputs.

    s = argmin_k sum over readers of var((x_hat(s_k) - x) W'),    s_k = share_k * the scale so far

on calibration images, with W the float weight of each layer that reads the value, and the variance
because a bias is corrected afterwards. Where anything but a layer reads a value, or something lies
between, its range stays: the error of the values themselves is all that is known there.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from qtool.graph.inputs import Inputs
from qtool.graph.sites.frames import sites_of
from qtool.graph.sites.functions import LAYERS, PASSES_ON
from qtool.graph.sites.value_graph import ValueGraph
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.ranges import RANGES
from qtool.numerics.roundings import ROUNDINGS
from qtool.post_training.outputs import places
from qtool.post_training.patches import of_positions, patches, product, taken
from qtool.post_training.walk import walk
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.control import in_float
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.layers import QuantLayer
from qtool.quantizers.places.chains import input_site
from qtool.quantizers.sites import SiteQuantizer, quantizer_of
from qtool.reports.improvements import Applied

SHARES = [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5]
POSITIONS = 1024  # of a layer's output, by which scales are compared
# what passes on, of a value, all or a part as it is
PASSES_ON_UNCHANGED = PASSES_ON - {"max_pool", "pad", "interpolate", "roll", "shuffle"}


@dataclass
class Tried:
    """A quantizer, and what its readers' outputs would be off by at each share of its scale.

    Attributes:
        place: its name.
        errors: float64 [shares], summed over readers.
        spread: of the outputs themselves, likewise.
        readers: that were seen.
    """

    quantizer: ActivationQuantizer
    place: str
    errors: Tensor = field(default_factory=lambda: torch.zeros(len(SHARES), dtype=torch.float64))
    spread: float = 0.0
    readers: set[str] = field(default_factory=set)

    def look(self, name: str, layer: QuantLayer, x: Tensor) -> None:
        """Take in what a reader would give; x is what it reads, not rounded."""
        y = layer.of_operands(x, layer.whole_weight)
        view, axes = patches(layer, x, y.shape), of_positions(layer, y).ndim - 1
        at = places(view.shape[:axes].numel(), POSITIONS).to(x.device)
        given, rows = taken(view, at, axes).flatten(2), layer.layout.rows(layer.whole_weight)
        self.spread += _variance(product(given, rows))
        for place, scale in enumerate(self.scales()):
            wrong = self._rounded(given, scale) - given
            self.errors[place] += _variance(product(wrong, rows))
        self.readers.add(name)

    def scales(self) -> Tensor:
        """Return the scales that are compared, [shares]."""
        scales = self.quantizer.used_scale * self.quantizer.scale.new_tensor(SHARES)
        top = self.quantizer.top if isinstance(self.quantizer, SiteQuantizer) else None
        if top is None:
            return scales
        return scales.clamp_max(top / self.quantizer.known_grid.qmax)

    def _rounded(self, x: Tensor, scale: Tensor) -> Tensor:
        rounding = ROUNDINGS[self.quantizer.deployed_rounding]
        on_grid = OnGrid.by_step(self.quantizer.known_grid, scale, x.new_zeros(()), rounding)
        return on_grid.values(on_grid.codes(x))

    def take(self) -> Applied:
        """Set the scale of the smallest error."""
        best = int(self.errors.argmin())
        now = self.errors[SHARES.index(1.0)]
        self.quantizer.scale.copy_(self.scales()[best])
        spread = self.spread or torch.finfo(torch.float64).tiny
        return Applied(
            layer=self.place,
            step="activation_range",
            error_before=float(now) / spread,
            error_after=float(self.errors[best]) / spread,
            note=f"{SHARES[best]:g} of the range by its values" if SHARES[best] != 1 else "",
        )


def _variance(made: Tensor) -> float:
    """Return the squares of outputs [P, C] from the mean of their channel, summed."""
    return float((made - made.mean(0)).double().square().sum())


@torch.no_grad()
def choose_activation_ranges(model: nn.Module, inputs: Inputs) -> list[Applied]:
    """Choose the ranges of a calibrated model that are not said, in place; return what was done.

    Args:
        model: from `prepare`, in evaluation mode.
        inputs: calibration images.
    """
    tried: dict[ActivationQuantizer, Tried] = {}
    state = prepared_state(model)
    read = values_read(state.graph)

    def look(name: str, layer: QuantLayer, x: Tensor) -> None:
        quantizer = layer.input_quantizer
        if quantizer is None and read.get(name, "") == state.placement.layers.get(name):
            quantizer = layer.quantizer_of_input
        if quantizer is None or not is_open(quantizer):
            return
        found = tried.setdefault(quantizer, Tried(quantizer, quantizer.place))
        found.look(name, layer, x)

    with in_float(model):
        walk(model, inputs, look)
    readers = _readers(model)
    return [
        one.take()
        for quantizer, one in tried.items()
        if one.readers >= readers.get(quantizer, set())
    ]


def is_open(quantizer: ActivationQuantizer) -> bool:
    """Tell whether a scale may be chosen: the range is not said, and there is no zero point."""
    moves = quantizer.known_grid.kind == "asymmetric"
    return RANGES.facts(quantizer.settings.range.name).open and not (moves or quantizer.given)


def values_read(graph: ValueGraph) -> dict[str, str]:
    """Return layer -> the site whose value it is given, unchanged, or a part of that."""
    inputs = {value: str(input_site(number)) for number, value in enumerate(graph.inputs)}
    found: dict[str, str] = {}
    for operation in graph.operations:
        if operation.function not in LAYERS or not operation.reads:
            continue
        value = operation.reads[0]
        maker = graph.makers.get(value)
        while maker is not None and maker.function in PASSES_ON_UNCHANGED and maker.reads:
            value = maker.reads[0]
            maker = graph.makers.get(value)
        found[operation.site.leaf] = inputs.get(value, "") if maker is None else str(maker.site)
    return found


def _readers(model: nn.Module) -> dict[ActivationQuantizer, set[str]]:
    """Return the layers and joins that read what each quantizer at a site has rounded."""
    placed, stands = prepared_state(model).placement.sites, sites_of(model)
    found: dict[ActivationQuantizer, set[str]] = {}
    for name, site in placed.items():
        if name in stands:
            found.setdefault(quantizer_of(stands[name]), set()).update(site.readers)
    return found
