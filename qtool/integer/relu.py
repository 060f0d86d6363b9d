"""ReLUs whose outputs were quantized: what they put out lies on a grid."""

from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.graph.calls import CountsCalls
from qtool.graph.module_sites import Site
from qtool.graph.sites.running import runs_apart
from qtool.graph.swap import Part
from qtool.numerics.grid import IntegerGrid, Kind
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.roundings import ROUNDINGS


@dataclass(frozen=True)
class CallSpec:
    """What becomes of a ReLU's output in one of its calls.

    Attributes:
        bits, grid: None where the call stays float.
        rounding: which integer a value becomes.
    """

    bits: int | None = None
    grid: Kind | None = None
    rounding: Literal["half_to_even", "ceil"] = "half_to_even"

    @property
    def integers(self) -> IntegerGrid | None:
        """Return the grid."""
        return None if self.bits is None or self.grid is None else IntegerGrid(self.bits, self.grid)

    def on_grid(self, scale: Tensor) -> OnGrid | None:
        """Return the output's grid with a scale, []; None where the call stays float."""
        grid = self.integers
        return None if grid is None else OnGrid(grid, scale, 0, ROUNDINGS[self.rounding])


@dataclass(frozen=True)
class ReluSpec:
    """What a quantized ReLU is, apart from its scales; kept in the integer model's metadata."""

    name: str
    calls: list[CallSpec]

    def as_dict(self) -> dict[str, object]:
        """Return plain data."""
        return asdict(self)

    def site(self, call: int) -> Site:
        """Return the name of one of its calls."""
        return Site(self.name, call)


class IntegerReLU(Part, CountsCalls):
    """A ReLU that puts out real values of a grid, call by call.

    Attributes:
        scales: float32 [calls]; 1 where a call stays float.
    """

    maker = "qtool.convert"

    scales: Tensor

    def __init__(self, spec: ReluSpec) -> None:
        super().__init__(len(spec.calls))
        self.spec = spec
        self.register_buffer("scales", torch.ones(len(spec.calls)))

    def on_grid(self, call: int) -> OnGrid | None:
        """Return the grid and scale of what a call puts out; None where it stays float."""
        spec = self.spec.calls[call] if call < len(self.spec.calls) else CallSpec()
        return None if spec.bits is None else spec.on_grid(self.scales[call])

    @runs_apart
    def forward(self, input: Tensor) -> Tensor:
        """Return the quantized ReLU of the input, float32."""
        output = self.on_grid(self.next_call())
        if output is None:
            return F.relu(input)
        return output.values(output.codes(F.relu(input.float())))

    def extra_repr(self) -> str:
        """Show the widths in `print(model)`."""
        return ", ".join(str(call.integers) for call in self.spec.calls)


def integer_relus(model: nn.Module) -> dict[str, IntegerReLU]:
    """Return every quantized ReLU by its name, each once."""
    return {n: m for n, m in model.named_modules() if isinstance(m, IntegerReLU)}
