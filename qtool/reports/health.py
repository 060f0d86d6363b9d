"""Findings: parts of a quantized network that are dead, wasted or slower than they should be."""

from collections.abc import Sequence
from typing import Literal

from qtool.console import say
from qtool.reports.result import Result

SHOWN = 8  # findings on a terminal; all stand in the file

Kind = Literal[
    "scale_at_floor",
    "few_codes",
    "saturated",
    "dead_channels",
    "all_zero",
    "constant_output",
    "slower_than_float",
    "beyond_rounding",
]


class Finding(Result):
    """Something that a user should look at."""

    layer: str
    """Name of the module; "" where it is the whole network."""
    kind: Kind
    says: str
    """What was found, in words."""


def show_health(findings: Sequence[Finding]) -> None:
    """Show the first findings as notes; nothing where there are none."""
    for finding in findings[:SHOWN]:
        say(f"note: {finding.layer}: {finding.says}" if finding.layer else f"note: {finding.says}")
    if len(findings) > SHOWN:
        say(f"note: {len(findings) - SHOWN} more findings stand under health in the JSON file")
