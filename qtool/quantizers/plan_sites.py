"""What is decided for the values of a network, site by site, to be printed before training."""

from collections.abc import Mapping

from torch import nn

from qtool.graph.sites.frames import sites_of
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.places.placement import PlacedSite, Placement
from qtool.quantizers.sites import quantizer_of
from qtool.reports.inspections import SiteRow


def plan_sites(model: nn.Module) -> list[SiteRow]:
    """Return every value with a quantizer, and every operator that stays float, with the reason.

    Values come in the order of the pass. Where quantizers stand at layers or ReLUs there are none.
    """
    stands = sites_of(model)
    placement = prepared_state(model).placement
    return site_rows(placement, {name: quantizer_of(stand) for name, stand in stands.items()})


def site_rows(placement: Placement, quantizers: Mapping[str, FakeQuantize]) -> list[SiteRow]:
    """Return what `plan_sites` does.

    Args:
        placement: the decisions.
        quantizers: by the sites that they serve; what is not set yet has its grid from there.
    """
    computes = {join.output: join.kind for join in placement.joins.values()}
    rows = [
        _placed(name, site, placement, quantizers.get(name), computes.get(name, ""))
        for name, site in placement.sites.items()
    ]
    rows += [
        SiteRow(site=name, grid="float", why=why, advice=placement.advice.get(name, ""))
        for name, why in placement.float_joins.items()
    ]
    left = placement.without_quantizer
    return rows + [
        SiteRow(site=name, grid="float", why=why)
        for name, why in left.items()
        if name not in placement.float_joins
    ]


def _placed(
    name: str, site: PlacedSite, placement: Placement, quantizer: FakeQuantize | None, join: str
) -> SiteRow:
    kind = site.settings.grid
    if quantizer is not None and quantizer.grid is not None:
        kind = quantizer.grid.kind
    said: dict[str, object] = {
        "site": name,
        "made_by": placement.made_by(name),
        "read_by": list(site.readers),
        "grid": f"{site.settings.bits}-bit {kind}",
    }
    if quantizer is not None:
        said["how"] = f"{quantizer.settings.range}, {quantizer.gradient}"
    if site.group is not None and site.group != site.site:
        said["group"] = str(site.group)
    if site.top is not None:
        said["top"] = site.top
    if join:
        said["join"] = join
    again = [layer for layer in site.readers if layer in placement.requantized]
    if again:
        said["rounded_again_by"] = again
    if site.note:
        said["note"] = site.note
    return SiteRow.model_validate(said)
