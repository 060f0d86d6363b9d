"""What the rest of qtool must know of a range rule; each says it in its decorator."""

from dataclasses import dataclass
from typing import Literal

Side = Literal["weights", "activations"]

BETWEEN_SLOW_FITS = 100  # training steps


@dataclass(frozen=True, kw_only=True)
class RangeFacts:
    """What is true of a range beside the scale that it returns.

    The defaults are those of a rule for either side that takes some passes over the values.
    """

    side: Literal["both"] | Side = "both"
    """Whose scales it sets."""

    learns: Literal["scale", "clip"] | None = None
    """What it starts and training moves: the scale, or the largest level, whose decay is its
    parameter `l2`."""

    follows: bool = False
    """In training it sees a moving average of the extremes of batches, by its parameters `decay`
    and `every`."""

    costs: Literal["passes", "sort", "search"] = "passes"
    """passes: cheap enough for every training step. sort: not that. search: nor for a weight that
    may yet be loaded, so that it waits until it is needed."""

    refines: bool = False
    """Where it is due at every step, it takes one iteration from its last scale, as `refine_scale`
    does, in place of a new search."""

    given: bool = False
    """Its scale does not depend on the values, so that nothing is gained by fitting it again."""

    zero_point: bool = False
    """It finds a zero point on the asymmetric grid."""

    unsigned: bool = False
    """It is for grids without negative integers; an `auto` grid becomes one whatever it sees."""

    weighs: bool = False
    """It looks at all values, not at extremes alone, and takes as its third argument how many
    values each of a row stands for, [K], or None."""

    open: bool = False
    """Its scale is where methods of post-training quantization begin, not where they must stay."""

    squashes: bool = False
    """Weights of 2 bits or more come through a function, tanh(w) / max|tanh w| unless `interval`
    says another."""

    interval: bool = False
    """That function is the place of |w| in an interval that is learned; see `by_interval`."""

    def serves(self, side: Side) -> bool:
        """Tell whether it sets the scales of that side."""
        return self.side in ("both", side)

    @property
    def refit_every(self) -> int:
        """Return the training steps between fits of a weight, where a recipe does not say."""
        return 1 if self.costs == "passes" or self.refines else BETWEEN_SLOW_FITS
