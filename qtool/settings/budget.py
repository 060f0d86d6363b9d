"""What widths may cost together: a size, a mean of bits, bit-operations, or a latency."""

import re
from typing import Literal

from pydantic import field_validator, model_validator

from qtool.problems import ProblemsError, shown
from qtool.settings.section import Section, finite

Kind = Literal["size", "bits", "bitops", "latency"]
UNITS: dict[Kind, dict[str, float]] = {
    "size": {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9},
    "bitops": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "latency": {"us": 1e-3, "ms": 1, "s": 1e3},
}
EXAMPLES: dict[Kind, str] = {"size": "1.5MB", "bits": "4.0", "bitops": "2.0G", "latency": "3ms"}
LEAST, MOST = 1, 8  # bits
_AMOUNT = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)\s*")


class Budget(Section):
    """What the widths of weights may cost together; one key."""

    size: str | None = None
    """Of the exported file, such as 1.5MB; MB is 10^6 bytes."""

    bits: float | None = None
    """Mean over the quantized weights, such as 4.0."""

    bitops: str | float | None = None
    """Sum over layers of multiplications times bits of weights times bits of inputs, such as 2.0G;
    what stays float counts 32 bits."""

    latency: str | None = None
    """Of one image on one thread of this machine, such as 3ms."""

    @model_validator(mode="after")
    def _one_key(self) -> "Budget":
        said = [kind for kind in EXAMPLES if getattr(self, kind) is not None]
        if len(said) != 1:
            found = "says nothing" if not said else f"says {' and '.join(said)}"
            ways = " | ".join(f"{kind}: {example}" for kind, example in EXAMPLES.items())
            raise ProblemsError([("", f"{found}; give one of {ways}")])
        return self

    @field_validator("size", "bitops", "latency")
    @classmethod
    def _is_an_amount(cls, value: str | float | None, info: object) -> str | float | None:
        kind: Kind = getattr(info, "field_name", "size")
        if value is not None:
            _amount(value, kind)
        return value

    @field_validator("bits")
    @classmethod
    def _is_a_width(cls, value: float | None) -> float | None:
        if value is not None and not LEAST <= value <= MOST:
            raise ProblemsError([("", f"{value:g} is no mean of bits; give {LEAST} to {MOST}")])
        return value

    @property
    def kind(self) -> Kind:
        """Return what is limited."""
        return next(kind for kind in EXAMPLES if getattr(self, kind) is not None)

    @property
    def limit(self) -> float:
        """Return the most that there may be: bytes, bits, bit-operations, or milliseconds."""
        value = getattr(self, self.kind)
        return float(value) if self.kind == "bits" else _amount(value, self.kind)

    @property
    def asked(self) -> dict[str, str | float]:
        """Return the one key, as the recipe has it."""
        return {self.kind: getattr(self, self.kind)}


def _amount(value: str | float, kind: Kind) -> float:
    """Return how much is said.

    Raises:
        ProblemsError: If it is no number above 0 with a unit of this kind.
    """
    units = UNITS[kind]
    written = f"{value:f}" if finite(value) else str(value)
    found = _AMOUNT.fullmatch(written)
    named = [unit for unit in units if unit]
    wanted = f"give a number and one of {', '.join(named)}, such as {EXAMPLES[kind]}"
    if found is None:
        raise ProblemsError([("", f"{shown(value)} is no amount; {wanted}")])
    number, unit = float(found[1]), found[2]
    if unit not in units:
        what = f"{shown(unit)} is no unit of {kind}" if unit else "has no unit"
        raise ProblemsError([("", f"{shown(value)}: {what}; {wanted}")])
    if not number > 0:
        raise ProblemsError([("", f"{shown(value)} is nothing; {wanted}")])
    return number * units[unit]
