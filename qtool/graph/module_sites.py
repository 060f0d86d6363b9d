"""Sites: the numbered calls of a model's modules in one forward pass."""

from typing import NamedTuple


class Site(NamedTuple):
    """One of a module's calls in a forward pass of the model, written NAME:CALL.

    Attributes:
        module: the module's name in the model; "" is the model itself.
        call: which of its calls in one pass, from 0.
    """

    module: str
    call: int

    def __str__(self) -> str:
        """Return NAME:CALL."""
        return f"{self.module}:{self.call}"
