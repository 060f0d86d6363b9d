"""The quantizers at a prepared model's sites, and which of them round what a layer makes.

A layer rounds its own output where everything between the two is a part of it: a norm that is
folded, a ReLU or clip that the grid's ends do, a hardsigmoid behind scales of a sixth.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.frames import sites_of
from qtool.graph.sites.functions import LAYERS
from qtool.integer.site_specs import RoundingName, SiteGrid
from qtool.numerics.roundings import ROUNDINGS
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.door.deployed import Prepared, prepared_state
from qtool.quantizers.sites import SharedSite, SiteQuantizer

OWN_CALL = LAYERS  # what a layer calls itself


@dataclass(frozen=True)
class Standing:
    """A prepared model, and what is known of it.

    Attributes:
        model: as it is deployed.
        state: what `prepare` left on it, or `see_deployed` returned.
        quantizers: site, as written -> the quantizer that rounds there, its group's where it has
            one.
    """

    model: nn.Module
    state: Prepared
    quantizers: dict[str, ActivationQuantizer]

    @classmethod
    def of(cls, model: nn.Module, state: Prepared | None = None) -> "Standing":
        """Return what stands at a model's sites now."""
        stands = sites_of(model).items()
        quantizers = {name: found for name, stand in stands if (found := _quantizer(stand))}
        return cls(model, state or prepared_state(model), quantizers)

    def grid(self, site: str) -> SiteGrid:
        """Return the grid of what is rounded at a site, which has a quantizer."""
        quantizer, placed = self.quantizers[site], self.state.placement.sites[site]
        grid, on_grid = quantizer.known_grid, quantizer.on_grid
        rounding, zero = rounding_of(quantizer), int(quantizer.used_zero_point)
        top = bottom = None
        if placed.form == "rectified":
            bottom = zero if zero > grid.qmin else None
        if placed.top is not None:
            steps = ROUNDINGS[rounding](torch.full_like(on_grid.scale, placed.top) / on_grid.scale)
            top = int(steps) + zero
        return SiteGrid(
            site,
            grid.bits,
            grid.kind,
            rounding,
            top=top if top is not None and top < grid.qmax else None,
            bottom=bottom,
        )

    def scale_and_zero(self, site: str) -> tuple[Tensor, Tensor]:
        """Return scale and zero point of a site's codes, both []."""
        quantizer = self.quantizers[site]
        return quantizer.on_grid.scale, quantizer.used_zero_point

    def placed(self, site: str) -> CallSite:
        """Return the call that a site's quantizer stands at."""
        return self.state.placement.sites[site].site

    def source(self, layer: str) -> str:
        """Return the site whose value a layer reads as it is, "" where it rounds it by itself."""
        placement = self.state.placement
        return "" if layer in placement.requantized else placement.layers.get(layer, "")

    def site_behind(self, layer: str) -> str:
        """Return the site where a layer's output is rounded, "" where that stays float."""
        site = self.state.placement.outputs.get(layer, "")
        return site if site in self.quantizers else ""

    def norms_before(self, site: str) -> list[str]:
        """Return the norms between a site and the layer whose output is rounded there."""
        absorbed = self.state.placement.absorbed.items()
        return [name for name, at in absorbed if at == site and ":" not in name]

    def rounds_at_call(self, layer: str) -> bool:
        """Tell whether a layer's output is rounded before anything else sees it."""
        site = self.site_behind(layer)
        return bool(site) and self.placed(site).function in OWN_CALL


def rounding_of(quantizer: ActivationQuantizer) -> RoundingName:
    """Return the rounding that is deployed, by its name."""
    return "ceil" if quantizer.deployed_rounding == "ceil" else "half_to_even"


def _quantizer(stand: nn.Module) -> ActivationQuantizer | None:
    if isinstance(stand, SharedSite):
        return stand.quantizer[0]
    return cast(ActivationQuantizer, stand) if isinstance(stand, SiteQuantizer) else None
