"""Numbers of a recipe, and schedules as a whole, multiplied or put somewhere else."""

from collections.abc import Mapping

from qtool.comparison.question import rate_of


def scaled(schedule: Mapping[str, object], rate: float) -> dict[str, object]:
    """Return a schedule that starts at a value, and has all its values in proportion.

    Args:
        schedule: as a recipe has it, which does not start at 0.
        rate: where it is to start.
    """
    factor = rate / rate_of(schedule)
    if isinstance(values := schedule.get("values"), list):
        return {**schedule, "values": [factor * value for value in values]}
    made: dict[str, object] = {**schedule, "start" if "start" in schedule else "value": rate}
    if isinstance(stop := schedule.get("stop"), int | float):
        made["stop"] = factor * stop
    return made


def is_schedule(value: object) -> bool:
    """Tell whether a recipe's value is a schedule that has a number to start at."""
    return isinstance(value, dict) and bool({"start", "value", "values"} & set(value))


def number_of(value: object) -> float | None:
    """Return the number that a recipe's value is known by: itself, or where a schedule starts."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return value
    return rate_of(value) if isinstance(value, dict) and is_schedule(value) else None


def times(value: float, factor: float) -> float:
    """Return a product, which stays whole where a whole number becomes one."""
    product = value * factor
    return round(product) if isinstance(value, int) and product == round(product) else product
