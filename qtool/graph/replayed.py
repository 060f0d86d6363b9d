"""A pass through a model once more from one of its modules on, where that has changed.

What ended before that module was first called is not computed again: each call of a module gives
what it gave in the pass that was recorded. Functions that the model's own code calls between its
modules run again. A model whose code does more than it returns may come to another result so; who
replays holds a pass with nothing changed against the recorded one, see `Replay.is_exact`.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn

from qtool.graph.inputs import map_tensors

Forward = Callable[..., object]


@dataclass(frozen=True)
class _Ended:
    """A call that has ended: when, what it returned, and the calls inside it, itself included."""

    at: int
    made: object
    inside: Counter[str]


class Replay:
    """Records a pass through a model, and runs it again from a module on."""

    def __init__(self, model: nn.Module, apart: tuple[type[nn.Module], ...] = ()) -> None:
        """Take a model, in evaluation mode.

        Args:
            model: whose passes are replayed.
            apart: kinds of modules that are parts of the module around them; nothing of them and of
                what is inside them is kept.
        """
        self._model = model
        self._modules: dict[str, nn.Module] = {}
        hidden: list[str] = []
        for name, module in model.named_modules():
            if any(name.startswith(outer) for outer in hidden):
                continue
            if isinstance(module, apart):
                hidden.append(f"{name}.")
            elif name:
                self._modules[name] = module
        self._ended: dict[tuple[str, int], _Ended] = {}
        self._starts: dict[str, int] = {}
        self._counts: Counter[str] = Counter()
        self._clock = count()
        self._from: int | None = None  # what ended before this is given again; None: record
        self._last: tuple[Tensor, int, Tensor] | None = None
        self._output: object = None

    def record(self, *inputs: object) -> object:
        """Run a whole pass, and keep what every call of a module returns."""
        self.forget()
        self._output = self._run(inputs)
        self._last = None
        return self._output

    def run(self, *inputs: object, since: Collection[str]) -> object:
        """Run a pass again of which only the modules `since`, and what follows, have changed.

        Args:
            *inputs: as they were recorded.
            since: names of modules; where none of them was called, the pass is whole.
        """
        begun = [self._starts[name] for name in since if name in self._starts]
        self._from = min(begun, default=0)
        try:
            return self._run(inputs)
        finally:
            self._from = None

    def is_exact(self, *inputs: object, since: Collection[str]) -> bool:
        """Tell whether a pass with nothing changed gives what was recorded, to the last bit."""
        again = self.run(*inputs, since=since)
        if not isinstance(again, Tensor) or not isinstance(self._output, Tensor):
            return False
        return torch.equal(again, self._output)

    def first_output(self, name: str) -> object:
        """Return what the first call of a module returned in the recorded pass; None for none."""
        ended = self._ended.get((name, 0))
        return None if ended is None else ended.made

    def forget(self) -> None:
        """Let go of what was kept."""
        self._ended.clear()
        self._starts.clear()
        self._output = self._last = None
        self._clock = count()

    def _run(self, inputs: tuple[object, ...]) -> object:
        self._counts.clear()
        with self._watched(), torch.no_grad():
            return self._model(*inputs)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Let calls of modules come here, while inside."""
        before = {name: vars(module).get("forward") for name, module in self._modules.items()}
        for name, module in self._modules.items():
            vars(module)["forward"] = partial(self._call, name, module.forward)
        try:
            yield
        finally:
            for name, module in self._modules.items():
                del vars(module)["forward"]
                if before[name] is not None:
                    vars(module)["forward"] = before[name]

    def _call(self, name: str, forward: Forward, *args: object, **kwargs: object) -> object:
        """Return what a call returned before, or let it run, and keep that."""
        number = self._counts[name]
        if self._from is not None:
            ended = self._ended.get((name, number))
            if ended is not None and ended.at < self._from:
                self._counts.update(ended.inside)
                return map_tensors(Tensor.clone, ended.made)
            self._counts[name] += 1
            return forward(*args, **kwargs)
        started, before = next(self._clock), self._counts.copy()
        self._starts.setdefault(name, started)
        self._counts[name] += 1
        made = forward(*args, **kwargs)
        kept = map_tensors(self._kept, made)
        self._ended[name, number] = _Ended(next(self._clock), kept, self._counts - before)
        return made

    def _kept(self, made: Tensor) -> Tensor:
        """Return a copy of what a call made: what comes next may write to it.

        One copy serves the calls that return the same, one inside the other.
        """
        if self._last is not None:
            last, version, copied = self._last
            if last is made and made._version == version:
                return copied
        copied = made.clone()
        self._last = (made, made._version, copied)
        return copied
