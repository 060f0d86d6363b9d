"""What convert.json says of what was done to a network that is not trained."""

from typing import Literal

from qtool.reports.result import Result

Step = Literal[
    "equalization",
    "activation_range",
    "weight_scales",
    "bias_correction",
    "rounding",
    "reconstruction",
    "saturation",
]
"""What can be done to a layer, or at a place where values are rounded."""


class Applied(Result):
    """What was done in one place, and how far its output is from the float network's."""

    layer: str
    """Of the network; of equalization the first of a pair; the place of values that are rounded;
    the block of a reconstruction."""
    step: Step
    error_before: float | None
    """Of the output on calibration images, beside what the step does to it: the sum of squared
    differences from the float network's as a share of that of the float output from its mean. Null
    where there is no such output."""
    error_after: float | None
    note: str = ""
    """What it was, in words."""
