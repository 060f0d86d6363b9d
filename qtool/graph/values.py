"""Values: numbers for what the tensors of a pass hold.

A tensor that is written to, itself or through a view, holds a new value from then on. PyTorch
counts the writes to a tensor, and all views of the same memory share the counter.
"""

from collections.abc import Iterable

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

Value = int


class Values:
    """Numbers what tensors hold, in the order in which it comes up."""

    def __init__(self) -> None:
        self._held = WeakTensorKeyDictionary()  # tensor -> (its value, the writes to it by then)
        self._count = 0

    def of(self, tensor: Tensor) -> Value:
        """Return the value that a tensor holds; a new one where it was never seen like this."""
        known = self.known(tensor)
        return self.new(tensor) if known is None else known

    def known(self, tensor: Tensor) -> Value | None:
        """Return the value that a tensor holds; None where it was never seen like this."""
        if tensor not in self._held:
            return None
        value, writes = self._held[tensor]
        return value if writes == writes_to(tensor) else None

    def new(self, tensor: Tensor) -> Value:
        """Give a tensor a new value."""
        value = self._count
        self._held[tensor] = (value, writes_to(tensor))
        self._count += 1
        return value

    def hold(self, tensor: Tensor, value: Value) -> None:
        """Note that a tensor holds a value that another was given."""
        self._held[tensor] = (value, writes_to(tensor))

    def changed(self) -> list[Tensor]:
        """Return the tensors that were written to since they got their value."""
        return [t for t, (_, writes) in list(self._held.items()) if writes != writes_to(t)]

    def overwritten(self) -> Iterable[tuple[Value, Value]]:
        """Yield old and new value of each tensor that was written to since it got its value."""
        for tensor in self.changed():
            yield self._held[tensor][0], self.new(tensor)


def writes_to(tensor: Tensor) -> int:
    """Return how often a tensor was written to; 0 where PyTorch does not count (inference mode)."""
    return 0 if tensor.is_inference() else tensor._version
