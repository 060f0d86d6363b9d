"""Quantizers at sites: they stand at one call of a function in a block, and do the call's work.

A value gets its quantizer where it is made. At a ReLU, or a clip from 0, the rounding is the
function; elsewhere the function computes, never in place, and its result is rounded.
"""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from qtool.graph.sites.frames import INPUT
from qtool.graph.sites.functions import form_of
from qtool.graph.swap import Part
from qtool.numerics.grid import IntegerGrid
from qtool.numerics.ranges import EXTREMES, FOLLOWED_EXTREMES, GIVEN
from qtool.numerics.scales import above_floor
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.places.placement import Form
from qtool.settings.section import Choice
from qtool.settings.tensors import ActivationQuantization

Function = Callable[..., object]

BITS = 8  # of the forms hardswish and unit
UNIT = 1 / 255
SMALLEST_ZERO, LARGEST_ZERO = 8, 127  # k: at most half of the codes, lest 2k does not fit a byte
# functions that may be called in place, and compute the same apart from their argument
APART: Mapping[str, Function] = {
    "add": torch.add,
    "mul": torch.mul,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
}
OPERATORS = ("isub", "__isub__", "itruediv", "__itruediv__")  # in place
ONE_OPERAND = ("sigmoid", "hardsigmoid", "hardswish")


def settings_of(form: Form, settings: ActivationQuantization) -> ActivationQuantization:
    """Return settings that say what a form asks for.

    hardswish: its one number is the largest value, which a range that learns would move by the
    gradients of a grid whose every level depends on it; it follows the values instead.
    """
    if form == "rectified" and settings.grid == "auto":
        return settings.model_copy(update={"grid": "unsigned"})
    if form == "hardswish":
        follows = settings.of_range.follows
        name = FOLLOWED_EXTREMES if follows or settings.of_range.learns else EXTREMES
        choice = settings.range if follows else Choice(name=name)
        return settings.model_copy(update={"bits": BITS, "grid": "asymmetric", "range": choice})
    if form == "unit":
        choice = Choice.model_validate({"name": GIVEN, "scale": UNIT})
        return settings.model_copy(update={"bits": BITS, "grid": "unsigned", "range": choice})
    return settings


def hardswish_grid(largest: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scale 3 / k and the zero point k for values up to `largest`, shaped as that is.

    k = round(255 * 3 / (max + 3)): below -3 hardswish is 0, so that the grid begins there, and a
    code q has hardsigmoid min(q, 2k) / 2k, exactly.
    """
    reach = largest.clamp_min(0) + 3
    zero_point = torch.round(255 * 3 / reach).clamp(SMALLEST_ZERO, LARGEST_ZERO)
    return 3 / zero_point, zero_point


class SiteQuantizer(ActivationQuantizer):
    """Fake quantization of what one call of a function makes.

    Attributes:
        function: its name in `qtool.graph.sites.functions`.
        form: what the grid has to be like.
        top: what a clip from 0 ends at, where the function is one.
        members: names of the sites that it serves, its own first.
        sigmoid: at a SiLU in integers, rounds the sigmoid that is multiplied by x; else None.
        about: what makes the value and who reads it.
    """

    about: str = ""

    def __init__(
        self,
        settings: ActivationQuantization,
        function: str = "",
        form: Form = "free",
        *,
        top: float | None = None,
        members: tuple[str, ...] = ("",),
        joins: bool = True,
    ) -> None:
        super().__init__(settings_of(form, settings))
        self.function, self.form, self.top, self.members = function, form, top, members
        self._seen: set[str] = set()
        gated = function == "silu" and joins
        self.sigmoid = SiteQuantizer(settings, "sigmoid", "unit") if gated else None
        if form == "unit":
            self.given, self.ready = True, True
            self.scale.fill_(UNIT)
        self.observer.shared = len(members) > 1

    def at(self, function: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Return what a call makes, rounded; the arguments stay as they are."""
        return as_one_call(self, function, args, kwargs)

    def round_call(
        self,
        stand: "SiteQuantizer | SharedSite",
        function: Function,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> object:
        """Return what a call makes at one of the members."""
        name, member = stand.function, stand.member
        x = args[0] if args else next(iter(kwargs.values()))
        if name == "relu" and isinstance(x, Tensor):
            return self(x, rectify=True, member=member)
        if name == "clip" and stand.top is not None and isinstance(x, Tensor):
            return self(x, rectify=True, top=stand.top, member=member)
        if stand.sigmoid is not None and isinstance(x, Tensor):
            return self(x * stand.sigmoid(torch.sigmoid(x)), member=member)
        made = compute_apart(name, function, args, kwargs)
        return self(made, member=member) if isinstance(made, Tensor) else made

    def extra_repr(self) -> str:
        """Show the grid, the choices and the value in `print(model)`."""
        return ", ".join(filter(None, [super().extra_repr(), self.about]))

    @property
    def member(self) -> str:
        """Return the name of its own site."""
        return self.members[0]

    def waits(self, member: str) -> bool:
        """Tell, of a range that is not set yet, whether values of other members are to come."""
        self._seen.add(member)
        return len(self._seen) < len(self.members)

    def settle(self) -> None:
        """Set grid, scale and zero point from what was watched of all members."""
        self._seen.clear()
        super().settle()

    def _fitted(
        self, grid: IntegerGrid, rows: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.form == "hardswish":
            scale, zero_point = hardswish_grid(rows.amax(1))
            return above_floor(scale), zero_point
        scale, zero_point = super()._fitted(grid, rows, weights)
        if self.top is not None and grid.kind == "unsigned" and len(self.members) == 1:
            scale = scale.clamp_max(self.top / grid.qmax)  # no level lies beyond the clip's end
        return scale, zero_point


class _OneCall:
    """A call at a site as a function mode sees it: one function, by the name of the one called."""

    def __init__(self, stand: "SiteQuantizer | SharedSite", function: Function) -> None:
        self.stand, self.function = stand, function
        self.__name__ = getattr(function, "__name__", stand.function)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Return what the call makes, rounded."""
        quantizer = quantizer_of(self.stand)
        return quantizer.round_call(self.stand, self.function, args, kwargs)


def as_one_call(
    stand: "SiteQuantizer | SharedSite",
    function: Function,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> object:
    """Return what a call at a site makes; whoever records functions sees that and nothing inside.

    Rounding is an autograd function, which no function mode is told of, and the values that it
    makes on the way are none of the network's.
    """
    x = args[0] if args else None
    if isinstance(x, list | tuple):
        x = next(iter(x), None)
    if isinstance(x, Tensor) and has_torch_function_unary(x):
        found: object = handle_torch_function(_OneCall(stand, function), (x,), *args, **kwargs)
        return found
    return quantizer_of(stand).round_call(stand, function, args, kwargs)


def quantizer_of(stand: nn.Module) -> SiteQuantizer:
    """Return the quantizer of what stands at a site of a prepared model, which others may share."""
    if isinstance(stand, SharedSite):
        return stand.quantizer[0]
    assert isinstance(stand, SiteQuantizer)
    return stand


class SharedSite(Part):
    """A site whose value another site's quantizer rounds, as all operands of a concatenation are.

    Attributes:
        quantizer: that of the group, in a tuple, so that it is not this module's own.
        function, top, sigmoid: as a `SiteQuantizer` has them.
        member: name of this site.
        about: what makes the value and who reads it.
    """

    maker = "qtool.prepare"
    about: str = ""

    def __init__(
        self,
        quantizer: SiteQuantizer,
        function: str,
        member: str,
        *,
        top: float | None = None,
        joins: bool = True,
    ) -> None:
        super().__init__()
        self.quantizer = (quantizer,)
        self.function, self.member, self.top = function, member, top
        self.sigmoid: SiteQuantizer | None = None
        if function == "silu" and joins and isinstance(quantizer.settings, ActivationQuantization):
            self.sigmoid = SiteQuantizer(quantizer.settings, "sigmoid", "unit")

    def at(self, function: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Return what a call makes, rounded; the arguments stay as they are."""
        return as_one_call(self, function, args, kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Return a value rounded by the group's quantizer, same shape."""
        return self.quantizer[0](x, member=self.member)

    def extra_repr(self) -> str:
        """Show whose quantizer it is in `print(model)`."""
        return ", ".join(filter(None, [f"as {self.quantizer[0].member}", self.about]))


def compute_apart(
    name: str, function: Function, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> object:
    """Return what a function makes of its arguments, which a form in place would overwrite.

    What is overwritten may be what autograd keeps of the operator that made it.
    """
    if name in ONE_OPERAND:
        return APART[name](args[0] if args else next(iter(kwargs.values())))
    if name in APART:
        return APART[name](*args, **kwargs)
    if name == INPUT:
        return args[0]
    if kwargs.get("inplace"):
        return function(*args, **{**kwargs, "inplace": False})
    form = form_of(function)
    in_place = form in OPERATORS or (form.endswith("_") and not form.endswith("__"))
    if in_place and isinstance(args[0], Tensor):
        return function(args[0].clone(), *args[1:], **kwargs)
    return function(*args, **kwargs)


def stands_at_sites(model: nn.Module) -> dict[str, SiteQuantizer | SharedSite]:
    """Return what `prepare` put at the sites of a model, by the names of the modules."""
    found = ((n, m) for n, m in model.named_modules() if isinstance(m, SiteQuantizer | SharedSite))
    return {name: cast("SiteQuantizer | SharedSite", module) for name, module in found}


def settle_what_waits(model: nn.Module) -> None:
    """Set the ranges of groups of which a pass has shown some members, but not all."""
    for module in model.modules():
        if isinstance(module, SiteQuantizer) and not module.ready and module.observer.watched:
            module.settle()
