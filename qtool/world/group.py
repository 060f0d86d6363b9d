"""Several processes that train one network, by torch.distributed.

Numbers that Python reads go through a group of processors (gloo), so that no device waits for them;
tensors go where they lie. Results are the same in all processes to the last bit.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.distributed_c10d import Store

from qtool.errors import QtoolError
from qtool.stopping import Stopped, waiting
from qtool.world.world import E, T, World

FAILED = 1000  # beyond the number of any signal
WORD = "failed"  # in the store: what, and the exit code
# what torch's gloo and its store say where a process no longer answers
LOST = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "recvValue failed")


class OtherProcessError(QtoolError):
    """Another process of this training has failed, and this one ends with it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LostProcessError(OtherProcessError):
    """Another process of this training no longer answers."""


class Group(World):
    """Several processes.

    Attributes:
        group: theirs; None is the one of all.
        store: where one that fails leaves word for the others; None where there is none.
    """

    def __init__(self, group: ProcessGroup | None = None, store: Store | None = None) -> None:
        self.group, self.store = group, store
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._first_rank = 0 if group is None else dist.get_global_rank(group, 0)

    def widest(self, extremes: Tensor) -> Tensor:
        """Return the smallest and the largest value [2] of those of all processes."""
        ends = torch.stack([-extremes[0], extremes[1]])
        dist.all_reduce(ends, dist.ReduceOp.MAX, group=self.group)
        return torch.stack([-ends[0], ends[1]])

    def all_rows(self, x: Tensor) -> Tensor:
        """Return the rows of all processes in the order of the batch that was dealt out.

        Process r has rows r, r + size, r + 2 size, ... of that. Where values are no rows of one
        batch, as their shapes tell, they follow each other, [N].
        """
        shapes = [cast(torch.Size, shape) for shape in self._objects(x.shape)]
        inner = {shape[1:] for shape in shapes}
        counts = [shape[0] if shape else 1 for shape in shapes]
        dealt = counts == sorted(counts, reverse=True) and counts[0] - counts[-1] <= 1
        flat = x.detach().reshape(-1)
        longest = max(shape.numel() for shape in shapes)
        padded = flat.new_zeros(longest)
        padded[: len(flat)] = flat
        found = self.each(padded)
        parts = [row[: s.numel()] for row, s in zip(found, shapes, strict=True)]
        if len(inner) > 1 or not dealt or not x.ndim:
            return torch.cat(parts)
        whole = x.new_empty(sum(counts), *x.shape[1:])
        for rank, (part, shape) in enumerate(zip(parts, shapes, strict=True)):
            whole[rank :: self.size] = part.reshape(shape)
        return whole

    def each(self, x: Tensor) -> Tensor:
        """Return what each process has, [size, ...]; shapes are the same in all."""
        given = x.contiguous()
        found = [torch.empty_like(given) for _ in range(self.size)]
        dist.all_gather(found, given, group=self.group)
        return torch.stack(found)

    def add_up(self, x: Tensor) -> Tensor:
        """Return the sum of what each process has, of the same shape in all."""
        total = x.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def average_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors, of one type, to their mean over all processes."""
        if tensors:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(flat, group=self.group)
            _spread(flat.div_(self.size), tensors)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Set tensors to what they are in the first process."""
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in alike])
            dist.broadcast(flat, self._first_rank, group=self.group)
            _spread(flat, alike)

    def same_everywhere(self, model: nn.Module) -> None:
        """Let a model be the first process's, to the last bit, with all that its state holds."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        state = {key: value.to(device, copy=True) for key, value in model.state_dict().items()}
        self.copy_from_first(list(state.values()))
        model.load_state_dict(state)

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sum of each number over all processes."""
        total = torch.tensor(list(values), dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return [float(value) for value in total]

    def largest(self, value: int) -> int:
        """Return the largest of a number that each process has."""
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what the first process makes; no one else calls `make`.

        Raises:
            Exception: What `make` raises is raised in all processes.
        """
        made: list[T] = []
        with self.together():
            if self.first:
                made.append(make())
        box: list[object] = [made[0] if made else None]
        dist.broadcast_object_list(box, self._first_rank, group=self.group)
        return cast(T, box[0])

    def told(self, word: str) -> list[str]:
        """Return a word of each process, by rank."""
        return [str(found) for found in self._objects(word)]

    @contextmanager
    def together(self) -> Iterator[None]:
        """End in all processes alike: what one of them raises inside, all raise.

        Nothing inside may ask another process. The first process, which is the one that speaks,
        says what the first to fail does; a KeyboardInterrupt is left to torchrun.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # whatever it is, the others must not wait
            failure = error
        if self.largest(failure is not None):
            raise self._failed(failure)

    def in_step(self, items: Iterable[T]) -> Iterator[T]:
        """Yield what is gone through in all processes at once, one item of each at a time.

        Raises:
            Exception: What the next item raises in one process is raised in all; so is `Stopped`,
                where a signal that is held back asks one of them to stop.
        """
        source = iter(items)
        while True:
            found: list[T] = []
            failure: Exception | None = None
            try:
                found = list(islice(source, 1))
            except Exception as error:
                failure = error
            code = self.largest(waiting() if failure is None else FAILED)
            if code == FAILED:
                raise self._failed(failure)
            if code:
                raise Stopped(code)
            if not found:
                return
            yield found[0]

    def _failed(self, failure: Exception | None) -> Exception:
        """Return what to raise where some process has failed, this one or another."""
        own = None if failure is None else (_message(failure), getattr(failure, "exit_code", 1))
        found = [given for given in self._objects(own) if isinstance(given, tuple)]
        return self.alike(failure or OtherProcessError(*found[0]))

    def alike(self, error: E) -> E:
        """Return an error that all processes raise at this point, which the first one shows."""
        if isinstance(error, QtoolError):
            error.told = not self.first
        return error

    def leave_word(self, error: Exception) -> None:
        """Tell the others, who then wait for this process in vain, what has failed in it."""
        if self.store is not None and not isinstance(error, OtherProcessError):
            word = json.dumps([_message(error), getattr(error, "exit_code", 1)])
            with suppress(RuntimeError):  # the store may be gone as well
                self.store.set(WORD, word)

    def meant_by(self, error: Exception) -> Exception:
        """Return what an error means: that of a connection, that a process has ended.

        Where that one has left word, it is what it said; and it says so itself.
        """
        text = str(error)
        if not (isinstance(error, RuntimeError) and any(word in text for word in LOST)):
            return error
        with suppress(RuntimeError):
            if self.store is not None and self.store.check([WORD]):
                message, code = json.loads(self.store.get(WORD))
                failure = OtherProcessError(message, code)
                failure.told = True
                return failure
        return self.alike(
            LostProcessError(
                f"another of the {self.size} processes of this training has ended, by a signal or "
                f"with a message of its own; start it again with --resume",
                exit_code=1,
            )
        )

    def _objects(self, value: object) -> list[object]:
        """Return what each process gives."""
        found: list[object] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        return found


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, QtoolError) else f"{type(error).__name__}: {error}"


def _spread(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy a row of numbers back into the tensors that it was made of."""
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.detach().copy_(part.reshape(tensor.shape))
