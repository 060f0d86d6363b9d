"""What the codes of a run's layers are like: as much of each as its checkpoint and metrics tell."""

from pydantic import Field

from qtool.reports.result import Result


class LayerFigures(Result):
    """One quantized layer of a trained network."""

    layer: str
    shape: list[int]
    """Of the weight."""
    weight_bits: int | None
    """Null where the weight is float."""
    input_bits: int | None
    """Null where the input is float."""
    levels_used: int | None
    """How many different codes the weight has; null where it is float."""
    levels: int | None
    """How many its grid has."""
    saturated: float | None
    """Share of its codes at the ends of the grid."""
    sqnr: float | None
    """Of the latent weight over its error on the grid, decibels:
    10 log10(sum w^2 / sum (w - w_hat)^2); null where it is float, or there is no error."""
    weight_scale: tuple[float, float] | None
    """Smallest and largest step of its channels."""
    input_scale: tuple[float, float] | None
    flip_ratio: list[float] = Field(default_factory=list)
    """By epoch: share of the weight's codes that change in a step."""
    oscillation_frequency: list[float] = Field(default_factory=list)
    """By epoch: moving average of changes against the last change's direction."""
