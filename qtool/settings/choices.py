"""What a recipe may choose for a tensor: estimator, range, rounding, and schedules of numbers."""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.ranges import RANGES
from qtool.numerics.schedules import MOVES, SCHEDULES, WHOLE, Schedule, in_phases
from qtool.problems import Problem, plain_message, shown
from qtool.settings.section import Choice, finite, in_registry
from qtool.settings.user_estimators import is_users

MOST_PHASES = 100
RISING = ("linear", "cosine", "cubic", "polynomial", "exponential")  # reach stop at the end only
SAMPLED = [k / 100 for k in range(101)]  # where on the way a schedule's values are looked at


def schedule_problems(
    name: str, params: dict[str, Any], wrong: Callable[[float], str | None]
) -> list[Problem]:
    """Return what is wrong with a schedule and with the values that it takes.

    Args:
        name: in SCHEDULES.
        params: of the schedule.
        wrong: takes a value and returns what is wrong with it, or None.
    """
    if found := SCHEDULES.problems(name, params):
        return found
    schedule = SCHEDULES.build(name, **params)
    try:
        values = [float(schedule(progress)) for progress in SAMPLED]
    except (ValueError, ArithmeticError) as error:
        return [("", str(error))]
    return next(([("", why)] for value in values if (why := wrong(value))), [])


def moves(name: str, parameter: str) -> bool:
    """Tell whether a parameter of an estimator may change during training."""
    annotation = ESTIMATORS.parameters(name)[parameter].annotation
    return is_users(name) or MOVES in getattr(annotation, "__metadata__", ())


def _take_schedules(name: str, params: dict[str, Any]) -> list[Problem]:
    """Check the parameters of an estimator that are schedules, and put their first value there."""
    if name not in ESTIMATORS:
        if is_users(name):  # a file that is not at hand, and not needed to read a finished model
            params.clear()
        return []
    found: list[Problem] = []
    accepted = ESTIMATORS.parameters(name)
    for key in [k for k, value in params.items() if isinstance(value, dict) and k in accepted]:
        given = dict(params.pop(key))
        if not moves(name, key):
            found.append((key, f"{shown(given)} is not a number; it stays as it is in training"))
            continue
        schedule = given.pop("name", None)
        if not isinstance(schedule, str):
            found.append((key, "a schedule has a name, such as linear"))
            continue
        allowed = TypeAdapter(accepted[key].annotation)
        wrong = schedule_problems(schedule, given, _refused_by(allowed))
        found += [(f"{key}.{place}".rstrip("."), why) for place, why in wrong]
        if not wrong:
            params[key] = float(SCHEDULES.build(schedule, **given)(0.0))
    return found


def _refused_by(allowed: TypeAdapter[Any]) -> Callable[[float], str | None]:
    def wrong(value: float) -> str | None:
        try:
            allowed.validate_python(value, strict=True)
        except ValidationError as error:
            return f"its value becomes wrong: {plain_message(error.errors()[0])}"
        return None if finite(value) else f"its value becomes {value}"

    return wrong


def _from_0_to_1(value: object) -> object:
    """Let a blend leave out what it always is: a schedule from 0 to 1."""
    choice = {"name": value} if isinstance(value, str) else value
    if isinstance(choice, dict) and choice.get("name") in SCHEDULES:
        ends = {"start": 0.0, "stop": 1.0}
        if not SCHEDULES.problems(choice["name"], ends):
            return {**ends, **choice}
    return choice


def _take_blend(name: str, params: dict[str, Any]) -> list[Problem]:
    def wrong(alpha: float) -> str | None:
        return None if 0.0 <= alpha <= 1.0 else "alpha must stay within 0 and 1"

    phases = params.pop("phases", 1)
    if type(phases) is not int or not 1 <= phases <= MOST_PHASES:
        return [("phases", f"{shown(phases)} is not a whole number from 1 to {MOST_PHASES}")]
    if phases > 1 and name not in RISING:
        why = f"{phases} phases need a shape that reaches 1 at its end only"
        return [("phases", f"{why}; choose one of: {', '.join(RISING)}")]
    if found := schedule_problems(name, params, wrong):
        return found
    schedule = SCHEDULES.build(name, **params)
    alphas = [float(schedule(progress)) for progress in SAMPLED]
    if alphas[-1] != 1.0:
        return [("", f"alpha ends at {alphas[-1]}; it must reach 1")]
    if any(before == 1.0 > after for before, after in pairwise(alphas)):
        return [("", "alpha falls from 1, where weights stop for good; let 1 be its last value")]
    return []


def blend_schedule(choice: Choice) -> tuple[Schedule, float]:
    """Return the schedule of alpha that a blend asks for, and where its last phase begins.

    Before that progress, alpha may come to 1 by rounding, and goes back.
    """
    params = choice.params
    phases, (first, last) = params.pop("phases", 1), params.get("window", WHOLE)
    schedule = in_phases(SCHEDULES.build(choice.name, **params), phases, [first, last])
    return schedule, 0.0 if phases == 1 else last - (last - first) / phases


def number_is_constant(value: object) -> object:
    """Read a plain number as a schedule that stays there."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"name": "constant", "value": float(value) if finite(value) else value}
    return value


def _take_strength(name: str, params: dict[str, Any]) -> list[Problem]:
    def wrong(value: float) -> str | None:
        return None if value >= 0 else f"becomes {value:g}; it must not be negative"

    return schedule_problems(name, params, wrong)


EstimatorChoice = Annotated[Choice, in_registry(ESTIMATORS, also=_take_schedules, unless=is_users)]
RangeChoice = Annotated[Choice, in_registry(RANGES)]
BlendChoice = Annotated[
    Choice, in_registry(SCHEDULES, also=_take_blend), BeforeValidator(_from_0_to_1)
]
StrengthChoice = Annotated[
    Choice, in_registry(SCHEDULES, also=_take_strength), BeforeValidator(number_is_constant)
]
