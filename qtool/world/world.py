"""One process that trains by itself: what a world is asked, and the answers that need no one else.

Everything that depends on all rows of a batch, or may be done only once, asks its world: sums,
extremes, who writes, who has failed. Alone, each answer is what was given, to the last bit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


class World:
    """The processes that train one network; here, one.

    Attributes:
        rank: which of them this is, from 0.
        size: how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Tell whether this is the process that writes and speaks."""
        return self.rank == 0

    # What is asked on the way, in passes and steps

    def widest(self, extremes: Tensor) -> Tensor:
        """Return the smallest and the largest value [2] of those of all processes."""
        return extremes

    def all_rows(self, x: Tensor) -> Tensor:
        """Return the rows of all processes in the order of the batch that was dealt out."""
        return x

    def each(self, x: Tensor) -> Tensor:
        """Return what each process has, [size, ...]; shapes are the same in all."""
        return x.unsqueeze(0)

    def add_up(self, x: Tensor) -> Tensor:
        """Return the sum of what each process has, of the same shape in all."""
        return x

    def average_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors to their mean over all processes."""

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors to what they are in the first process."""

    def same_everywhere(self, model: nn.Module) -> None:
        """Let a model be the first process's, to the last bit, with all that its state holds."""

    # What is asked between steps

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each number over all processes."""
        return list(values)

    def largest(self, value: int) -> int:
        """Return the largest of a number that each process has."""
        return value

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first process makes; no one else calls `make`.

        Raises:
            Exception: What `make` raises is raised in all processes.
        """
        return make()

    def told(self, word: str) -> list[str]:
        """Return a word of each process, by rank."""
        return [word]

    def in_step(self, items: Iterable[T]) -> Iterable[T]:
        """Return what is gone through in all processes at once, one item of each at a time.

        Raises:
            Exception: What the next item raises in one process is raised in all; so is `Stopped`,
                where a signal that is held back asks one of them to stop.
        """
        return items

    @contextmanager
    def together(self) -> Iterator[None]:
        """End in all processes alike: what one of them raises inside, all raise.

        Nothing inside may ask another process.
        """
        yield

    def alike(self, error: E) -> E:
        """Return an error that all processes raise at this point, which the first one shows."""
        return error

    def meant_by(self, error: Exception) -> Exception:
        """Return what an error means: that of a connection, that a process has ended."""
        return error


ALONE = World()
