"""Figures as people write them."""


def percent(value: float | None) -> str:
    """Return a share as a percentage, or a dash where there is none."""
    return "-" if value is None else f"{100 * value:.2f} %"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with so many digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def size(count: float) -> str:
    """Return a number of bytes in MB or kB."""
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def points(value: float | None) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return "-" if value is None else f"{100 * value:+.2f}".replace("-", "\N{MINUS SIGN}")


def interval(low: float | None, high: float | None) -> str:
    """Return an interval of differences in points, or a dash."""
    return "-" if low is None or high is None else f"{points(low)} to {points(high)}"


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def time_left(seconds: float) -> str:
    """Return a time to wait as people say it: "40 s", "7 min", "2 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"
