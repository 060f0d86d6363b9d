"""What may stand at a call site of an integer model, and what most of it shares."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from qtool.graph.inputs import tensors_in
from qtool.graph.swap import Part
from qtool.integer.site_specs import SiteSpec, round_to_values
from qtool.numerics.on_grid import OnGrid

Function = Callable[..., object]
Args = tuple[object, ...]
Kwargs = Mapping[str, object]


class AtSite(Part, ABC):
    """What stands at a site of an integer model.

    Attributes:
        spec: what it is, apart from its tensors.
        scale: float32 [], of its result's codes; absent where it passes a value on.
        zero_point: int32 [], likewise.
        input_scales, input_zero_points: float32 [K] and int32 [K], of its operands' codes; absent
            where those are float.
    """

    maker = "qtool.convert"

    scale: Tensor
    zero_point: Tensor
    input_scales: Tensor
    input_zero_points: Tensor

    def __init__(self, spec: SiteSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.output is not None:
            self.register_buffer("scale", torch.ones(()))
            self.register_buffer("zero_point", torch.zeros((), dtype=torch.int32))
        if count := len(spec.inputs):
            self.register_buffer("input_scales", torch.ones(count))
            self.register_buffer("input_zero_points", torch.zeros(count, dtype=torch.int32))

    @abstractmethod
    def at(self, function: Function, args: Args, kwargs: Kwargs) -> object:
        """Return what the call of `function` on these arguments gives."""

    @property
    def output(self) -> OnGrid:
        """Return grid, scale and zero point of its result.

        Raises:
            AttributeError: If it passes values on, and has none; torch.jit.trace asks for all.
        """
        if self.spec.output is None:
            raise AttributeError(f"{self.spec.site} passes values on, and has no grid of its own")
        return self.spec.output.on_grid(self.scale, self.zero_point)

    @property
    def inputs(self) -> list[OnGrid]:
        """Return grid, scale and zero point of each operand."""
        scales, zeros = self.input_scales, self.input_zero_points
        return [spec.on_grid(scales[n], zeros[n]) for n, spec in enumerate(self.spec.inputs)]

    def steps(self, args: Args, kwargs: Kwargs) -> Iterator[Tensor]:
        """Yield code - z of each operand: integers, float32, in the shapes of the operands."""
        for given, x in zip(self.inputs, tensors_in((args, dict(kwargs))), strict=True):
            yield given.codes(x.float()) - given.zero_point

    def rounded(self, steps: Tensor) -> Tensor:
        """Return the values of its grid next to so many of its steps, float32, same shape."""
        ends, output = self.spec.output, self.output
        assert ends is not None
        return round_to_values(steps, output, top=ends.top, bottom=ends.bottom)

    def extra_repr(self) -> str:
        """Show what it does and its width in `print(model)`."""
        output = self.spec.output
        return self.spec.kind if output is None else f"{self.spec.kind}, {output.bits} bits"


class Passed(AtSite):
    """A ReLU, clip or gate whose work is done before it: its argument is its result."""

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> object:
        """Return the first tensor among the arguments."""
        return next(tensors_in((args, dict(kwargs))))


class RoundedValue(AtSite):
    """A function that computes in float, or an input of the model, whose result is rounded.

        q = rint(y / s) + z

    What it is given may lie on a grid: QuantizeLinear behind DequantizeLinear computes this, too.
    """

    def at(self, function: Function, args: Args, kwargs: Kwargs) -> object:
        """Return the function's result on the grid; what holds no numbers is left as it is."""
        given = function(*args, **kwargs)
        return self.forward(given) if isinstance(given, Tensor) else given

    def forward(self, x: Tensor) -> Tensor:
        """Return real values on the grid, float32, same shape."""
        if not x.is_floating_point():
            return x
        return self.rounded(torch.div(x.float(), self.output.step))
