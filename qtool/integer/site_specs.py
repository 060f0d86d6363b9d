"""What stands at a call site of an integer model, apart from its tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, cast

from torch import Tensor

from qtool.graph.sites.call_sites import CallSite
from qtool.numerics.grid import IntegerGrid, Kind
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.roundings import ROUNDINGS

RoundingName = Literal["half_to_even", "ceil"]
# rounded: a float function, or an input of the model, whose result is rounded. passed: a norm,
# ReLU, clip or gate whose work is done before it. The others compute in codes.
SiteKind = Literal[
    "add",
    "mul",
    "cat",
    "global_pool",
    "depthwise",
    "sigmoid",
    "hardsigmoid",
    "silu",
    "hardswish",
    "requantize",
    "rounded",
    "passed",
]


@dataclass(frozen=True)
class SiteGrid:
    """The grid of a value that a call reads or makes.

    Attributes:
        site: where the value gets onto its grid, as written.
        bits, grid: of the integers allowed.
        rounding: which integer a value becomes.
        top: the largest code, where a clip from 0 ends below the grid's.
        bottom: the smallest code, where a ReLU or clip on a grid that reaches below 0 ends above
            the grid's.
    """

    site: str
    bits: int
    grid: Kind
    rounding: RoundingName = "half_to_even"
    top: int | None = None
    bottom: int | None = None

    def __post_init__(self) -> None:
        IntegerGrid(self.bits, self.grid)  # raises ValueError where there is no such grid

    def on_grid(self, scale: Tensor, zero_point: Tensor) -> OnGrid:
        """Return the grid with scale and zero point, both []."""
        grid = IntegerGrid(self.bits, self.grid)
        return OnGrid(grid, scale, zero_point, ROUNDINGS[self.rounding])


@dataclass(frozen=True)
class SiteSpec:
    """What stands at a call site of an integer model; kept in its metadata.

    Attributes:
        site: the call.
        kind: how it computes.
        output: the grid that its result is rounded to; None where it is passed on.
        inputs: the grids that its operands lie on, in their order; none where they are float.
        norm: name of the module, where it is a norm that became a depthwise convolution.
        facts: of the call: `kernel`, `stride`, `padding` of a pooling, `output` of a global one,
            `dim` of a concatenation, `channels` of a norm, and the `dimensions` of its images where
            these are not two.
    """

    site: CallSite
    kind: SiteKind
    output: SiteGrid | None = None
    inputs: tuple[SiteGrid, ...] = ()
    norm: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def bits(self) -> int | None:
        """Return the width of its result; None where it is passed on."""
        return None if self.output is None else self.output.bits

    @property
    def grid(self) -> Kind | None:
        """Return the grid of its result; None where it is passed on."""
        return None if self.output is None else self.output.grid

    @property
    def top(self) -> int | None:
        """Return the largest code of its result, where that is below the grid's."""
        return None if self.output is None else self.output.top

    def number(self, fact: str) -> int:
        """Return a fact that is an integer."""
        return cast(int, self.facts[fact])

    def sizes(self, fact: str) -> tuple[int, ...]:
        """Return a fact that speaks of each dimension of an image, such as height and width."""
        given = self.facts[fact]
        return (given, given) if isinstance(given, int) else tuple(cast(Sequence[int], given))

    def as_dict(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self)


def round_to_values(
    steps: Tensor,
    output: OnGrid,
    *,
    top: int | None = None,
    bottom: int | None = None,
) -> Tensor:
    """Return x_hat = (q - z) s, q = clamp(round(u) + z, max(qmin, bottom), min(qmax, top)).

    Args:
        steps: u = x / s, float32; overwritten.
        output: the grid, its scale and zero point, [].
        top: the largest integer allowed, where that is not the grid's.
        bottom: the smallest.
    """
    grid, zero = output.grid, output.zero_point
    if grid.offset:
        steps.add_(grid.offset)
    q = output.rounding(steps).add_(zero)
    low = grid.qmin if bottom is None else max(bottom, grid.qmin)
    q.clamp_(low, grid.qmax if top is None else min(top, grid.qmax))
    return output.values(2 * q - 1 if grid.kind == "mid_rise" else q)
