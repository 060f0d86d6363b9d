"""The arms of a comparison of schedules: recipes that differ in how one number is scheduled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qtool.comparison.arms.compared import ComparedArm
from qtool.comparison.question import (
    SIDES,
    ComparisonRequest,
    rate_of,
    read_base,
    refuse_repeated,
    sections_of,
)
from qtool.errors import InputError
from qtool.numerics.schedules import SCHEDULES
from qtool.problems import did_you_mean
from qtool.recipe.places import at, put, section_at
from qtool.runs.built.build import AFTER_A_BLEND

Scheduled = Literal["alpha", "learning_rate"]
Window = list[float]  # [a, b]: the share of training within which a value is scheduled

USUAL_SHAPES: dict[Scheduled, list[str]] = {
    "alpha": ["linear", "cubic", "cosine", "step"],
    "learning_rate": ["cosine", "linear", "step", "constant"],
}
USUAL_WINDOW: Window = [0.0, 0.8]  # of alpha, where the recipe has no blend
STE = "straight_through"


@dataclass(frozen=True)
class Shape:
    """How a number is scheduled: by which schedule, and in which window; None is the recipe's."""

    name: str
    window: Window | None

    def __str__(self) -> str:
        return self.name if self.window is None else f"{self.name}@{self.span}"

    @property
    def span(self) -> str:
        """Return the window as it is shown, "" where it is the recipe's."""
        return "" if self.window is None else f"{self.window[0]:g}-{self.window[1]:g}"

    def schedule(
        self, own: Mapping[str, object], common: Mapping[str, object]
    ) -> dict[str, object]:
        """Return the schedule of this shape.

        Args:
            own: the recipe's, which stays as it is where it has this shape.
            common: what a schedule of another shape takes over from it.
        """
        kept = own if own.get("name") == self.name else common
        window = {} if self.window is None else {"window": self.window}
        return {**kept, "name": self.name, **window}


def schedule_arms(
    request: ComparisonRequest,
    names: list[str] | None,
    on: Scheduled,
    windows: list[Window] | None,
) -> list[ComparedArm]:
    """Return one arm for each schedule, those of alpha after the straight-through one.

    Args:
        request: of which recipe, and how often.
        names: of the schedules; None takes the usual ones.
        on: what is scheduled.
        windows: each schedule has one arm for each. None leaves them to the recipe.

    Raises:
        InputError: If a schedule is unknown or named twice, or does not fit the recipe.
    """
    base = read_base(request)
    shapes = _shapes(names or USUAL_SHAPES[on], windows)
    data, arms = base.recipe.as_dict(), dict[str, dict[str, object]]()
    if on == "alpha":
        if not any(sections_of(data, side) for side in SIDES):
            raise InputError(f"{base.source}: nothing is quantized, so there is no alpha")
        arms[STE] = _with_alpha(data, None)
    for shape in shapes:
        if str(shape) in arms:
            raise InputError(f"--windows: two of them are the same to six digits: {shape.span}")
        arms[str(shape)] = _with_alpha(data, shape) if on == "alpha" else _with_rate(data, shape)
    return [ComparedArm(arm, base, put(data, changes)) for arm, changes in arms.items()]


def _shapes(names: list[str], windows: list[Window] | None) -> list[Shape]:
    """Return each schedule in each window; a constant has none.

    Raises:
        InputError: If a schedule is unknown, or named twice.
    """
    for name in names:
        if name not in SCHEDULES:
            hint = did_you_mean(name, SCHEDULES.names())
            raise InputError(f"--schedules: unknown schedule {name!r}{hint}")
    refuse_repeated(names, "--schedules", "a schedule")
    each: list[Window | None] = [*windows] if windows else [None]
    return [Shape(name, w) for name in names for w in ([None] if name == "constant" else each)]


def _with_alpha(data: Mapping[str, object], shape: Shape | None) -> dict[str, object]:
    """Return what changes with another schedule of alpha; without one, the straight-through arm's.

    Every blend is changed, those of overrides too; a recipe that has none gets one for its weights
    or, where those are float, for its activations. What a blend gets by default, the
    straight-through arm gets too. An estimator beside a blend stays there.
    """
    batches = at(data, "training.batch_norm_batches")
    changes: dict[str, object] = {
        "training.batch_norm_batches": AFTER_A_BLEND if batches is None else batches
    }
    sides = [sections_of(data, side) for side in SIDES]
    blended = {
        place: tensor for side in sides for place, tensor in side.items() if tensor.get("blend")
    }
    for place, tensor in (blended or next(side for side in sides if side)).items():
        beside = bool(tensor.get("blend")) and shape is not None
        kept = {k: v for k, v in tensor.items() if k != "blend" and (beside or k != "estimator")}
        own = tensor.get("blend") or {"window": USUAL_WINDOW}
        blend = own if isinstance(own, dict) else {"name": own}
        if shape is None:
            changes[place] = {**kept, "estimator": {"name": STE}}
            continue
        common = {"start", "window"}
        if SCHEDULES.facts(shape.name).rises:
            common.add("phases")
        changes[place] = {**kept, "blend": shape.schedule(blend, _only(blend, common))}
    return changes


def _with_rate(data: Mapping[str, object], shape: Shape) -> dict[str, object]:
    """Return what changes with another schedule of the learning rate between the same ends.

    A rate that is constant in the recipe goes down to 0.
    """
    own = section_at(data, "training.learning_rate")
    values = own.get("values")
    last = values[-1] if isinstance(values, list) else own.get("stop", 0.0)
    rate: dict[str, object] = {"warmup": own.get("warmup", 0.0)}
    if shape.name == "constant":
        rate |= {"value": rate_of(own)}
    else:
        rate |= {"start": rate_of(own), "stop": last} | _only(own, {"window"})
    return {"training.learning_rate": shape.schedule(own, rate)}


def _only(schedule: Mapping[str, object], keys: set[str]) -> dict[str, object]:
    return {key: value for key, value in schedule.items() if key in keys}
