"""What a recipe may choose for a tensor: estimator, range, rounding, and schedules of numbers."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Annotated, cast

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.ranges import RANGES
from qtool.numerics.schedules import MOVES, SCHEDULES, WHOLE, Schedule, in_phases, with_warmup
from qtool.problems import Problem, ProblemsError, no_schedule, plain_message, shown
from qtool.registry import LARGEST
from qtool.settings.section import Checked, Choice, finite, in_registry
from qtool.settings.user_parts import is_users

MOST_PHASES = 100
SAMPLED = [k / 100 for k in range(101)]  # where on the way a schedule's values are looked at


def schedule_problems(
    name: str, params: Mapping[str, object], wrong: Callable[[float], str | None]
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
        values = [float(schedule(progress)) for progress in _looked_at(params)]
    except (ValueError, ArithmeticError) as error:
        return [("", str(error))]
    found = next(([("", why)] for value in values if (why := wrong(value))), [])
    return found or next(([("", why)] for value in values if (why := _beyond_float32(value))), [])


def _looked_at(params: Mapping[str, object]) -> list[float]:
    """Return where a schedule is looked at: evenly, and at the ends and jumps of its window."""
    first, last = cast(list[float], params.get("window", WHOLE))
    at = cast(list[float], params.get("at", []))
    return sorted([*SAMPLED, first, last, *(first + share * (last - first) for share in at)])


def _beyond_float32(value: float) -> str | None:
    """Say that a value is too large for the tensors that it moves, if it is."""
    if abs(value) <= LARGEST:
        return None
    return f"its value becomes {value:g}; float32 reaches to {LARGEST:.3g}"


def moves(name: str, parameter: str) -> bool:
    """Tell whether a parameter of an estimator may change during training."""
    annotation = ESTIMATORS.parameters(name)[parameter].annotation
    return is_users(name) or MOVES in getattr(annotation, "__metadata__", ())


def _check_schedules(name: str, params: Mapping[str, object]) -> Checked:
    """Check the parameters of an estimator that are schedules; leave their first value instead."""
    if name not in ESTIMATORS:
        # a user's file that is not at hand is not needed to read a finished model
        return Checked([], {} if is_users(name) else params)
    found: list[Problem] = []
    accepted, first = ESTIMATORS.parameters(name), {}
    scheduled = {k: v for k, v in params.items() if isinstance(v, dict) and k in accepted}
    for key, given in scheduled.items():
        if not moves(name, key):
            found.append((key, f"{shown(given)} is not a number; it stays as it is in training"))
            continue
        schedule = given.get("name")
        if not isinstance(schedule, str):
            found.append((key, "a schedule has a name, such as linear"))
            continue
        own = {k: v for k, v in given.items() if k != "name"}
        allowed = TypeAdapter[float](accepted[key].annotation)
        wrong = schedule_problems(schedule, own, _refused_by(allowed))
        found += [(f"{key}.{place}".rstrip("."), why) for place, why in wrong]
        if not wrong:
            first[key] = float(SCHEDULES.build(schedule, **own)(0.0))
    return Checked(found, {k: v for k, v in params.items() if k not in scheduled} | first)


def _refused_by(allowed: TypeAdapter[float]) -> Callable[[float], str | None]:
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


def _check_blend(name: str, params: Mapping[str, object]) -> Checked:
    own = {key: value for key, value in params.items() if key != "phases"}
    return Checked(_blend_problems(name, own, params.get("phases", 1)), own)


def _blend_problems(name: str, params: Mapping[str, object], phases: object) -> list[Problem]:
    def wrong(alpha: float) -> str | None:
        return None if 0.0 <= alpha <= 1.0 else "alpha must stay within 0 and 1"

    if isinstance(phases, bool) or not isinstance(phases, int) or not 1 <= phases <= MOST_PHASES:
        return [("phases", f"{shown(phases)} is not a whole number from 1 to {MOST_PHASES}")]
    if phases > 1 and not SCHEDULES.facts(name).rises:
        rising = [known for known in SCHEDULES.names() if SCHEDULES.facts(known).rises]
        why = f"{phases} phases need a shape that reaches 1 at its end only"
        return [("phases", f"{why}; choose one of: {', '.join(rising)}")]
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
    phases, (first, last) = choice.parameter("phases", 1), choice.parameter("window", WHOLE)
    own = {key: value for key, value in choice.params.items() if key != "phases"}
    schedule = in_phases(SCHEDULES.build(choice.name, **own), phases, [first, last])
    return schedule, 0.0 if phases == 1 else last - (last - first) / phases


def rate_schedule(choice: Choice) -> Schedule:
    """Return the schedule of the learning rate, with its warmup."""
    own = {key: value for key, value in choice.params.items() if key != "warmup"}
    return with_warmup(SCHEDULES.build(choice.name, **own), choice.parameter("warmup", 0.0))


def number_is_constant(value: object) -> object:
    """Read a plain number as a schedule that stays there.

    Raises:
        ProblemsError: If it is a word, and no schedule's.
    """
    if isinstance(value, str) and value not in SCHEDULES:
        raise ProblemsError([("", no_schedule(value, SCHEDULES.names()))])
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"name": "constant", "value": float(value) if finite(value) else value}
    return value


def _check_strength(name: str, params: Mapping[str, object]) -> Checked:
    def wrong(value: float) -> str | None:
        return None if value >= 0 else f"becomes {value:g}; it must not be negative"

    return Checked(schedule_problems(name, params, wrong), params)


EstimatorChoice = Annotated[Choice, in_registry(ESTIMATORS, also=_check_schedules, unless=is_users)]
RangeChoice = Annotated[Choice, in_registry(RANGES)]
BlendChoice = Annotated[
    Choice, in_registry(SCHEDULES, also=_check_blend), BeforeValidator(_from_0_to_1)
]
StrengthChoice = Annotated[
    Choice, in_registry(SCHEDULES, also=_check_strength), BeforeValidator(number_is_constant)
]
