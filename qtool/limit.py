"""One known limit of qtool: a sentence, and what becomes of a network that meets it."""

import re
from dataclasses import dataclass
from typing import Literal

from qtool.errors import ModelError

Outcome = Literal["refused", "left float", "not folded"]


@dataclass(frozen=True)
class Limit:
    """One thing that qtool does not do, or not in integers.

    Attributes:
        outcome: what becomes of the network, the layer or the norm.
        says: the sentence, with names of what it speaks of in braces.
        do: what a user can do, with the same names; empty where that is plain or there is nothing.
    """

    outcome: Outcome
    says: str
    do: str = ""

    def text(self, **words: object) -> str:
        """Return the sentence; that of a refusal goes on with what to do."""
        said = self.says.format(**words)
        return f"{said}; {self.do.format(**words)}" if self.do and self.refuses else said

    def error(self, **words: object) -> ModelError:
        """Return the error that refuses a model, which is a ValueError, too."""
        return ModelError(self.text(**words))

    @property
    def refuses(self) -> bool:
        """Tell whether the network is refused."""
        return self.outcome == "refused"

    def fits(self, text: str) -> bool:
        """Tell whether a text is this sentence about something."""
        return self._read(text) is not None

    def advice(self, text: str) -> str:
        """Return what a user can do about this sentence about something, "" where it is another."""
        found = self._read(text)
        return self.do.format(**found) if found is not None else ""

    def _read(self, text: str) -> dict[str, str] | None:
        """Return the words that a text has in the places of this sentence, or None."""
        whole = f"{self.says}; {self.do}" if self.do and self.refuses else self.says
        pattern, names = "", []
        for place, part in enumerate(re.split(r"(?<!\{)\{(\w+)\}(?!\})", whole)):
            if place % 2:
                pattern += ".+" if part in names else f"(?P<{part}>.+)"
                names.append(part)
            else:
                pattern += re.escape(re.sub(r"([{}])\1", r"\1", part))
        found = re.fullmatch(pattern, text, re.DOTALL)
        return None if found is None else found.groupdict()
