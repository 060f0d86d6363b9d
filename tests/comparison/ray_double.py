"""A double of the module `ray`: tasks run in this process when they are waited for.

It takes no more tasks at once than it has processors for, and a task of DIES finds its worker dead.
"""

import signal
from collections.abc import Callable, Sequence
from types import SimpleNamespace

DIES = "the worker died\nits node was lost"


class RayError(Exception):
    """What Ray says of a task or of itself."""


class Ray:
    """The functions of the module that qtool calls, and what they were called with.

    Args:
        processors: of the cluster.
        dies: tells of the arguments of a task whether its worker dies.
    """

    def __init__(
        self, processors: int = 4, dies: Callable[..., bool] = lambda *given: False
    ) -> None:
        self.processors, self.dies = processors, dies
        self.exceptions = SimpleNamespace(RayError=RayError)
        self.begun: tuple[str, dict[str, object]] | None = None
        self.asked: dict[str, object] = {}
        self.waiting: dict[object, Callable[[], object]] = {}
        self.ended: dict[object, object] = {}
        self.most = 0
        self.cancelled: list[object] = []
        self.open = False

    def init(self, address: str, **options: object) -> None:
        self.begun, self.open = (address, options), True
        for number in (signal.SIGINT, signal.SIGTERM):  # as Ray does
            signal.signal(number, signal.SIG_DFL)

    def shutdown(self) -> None:
        self.open = False

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self.processors), "memory": 1e9}

    def remote(self, **asked: object) -> Callable[[Callable[..., object]], SimpleNamespace]:
        """Return what makes a task of a function."""
        self.asked = asked

        def made(function: Callable[..., object]) -> SimpleNamespace:
            def sent(*given: object) -> object:
                assert self.open
                reference = object()
                self.waiting[reference] = lambda: function(*given)
                if self.dies(*given):
                    self.waiting[reference] = self._dies
                self.most = max(self.most, len(self.waiting))
                return reference

            return SimpleNamespace(remote=sent)

        return made

    def _dies(self) -> object:
        raise RayError(DIES)

    def wait(
        self, references: Sequence[object], *, num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[object], list[object]]:
        """Run the first of some tasks, and return it and the others."""
        assert len(references) >= num_returns
        assert timeout is not None
        done, others = list(references[:num_returns]), list(references[num_returns:])
        for each in done:
            task = self.waiting.pop(each, None)
            if task is not None and each not in self.cancelled:
                try:
                    self.ended[each] = task()
                except Exception as error:  # whatever a task raises, Ray's own error says so
                    self.ended[each] = RayError(f"RayTaskError\n{type(error).__name__}: {error}")
        return done, others

    def get(self, reference: object) -> object:
        """Return what a task returned.

        Raises:
            RayError: If it did not.
        """
        if isinstance(found := self.ended[reference], RayError):
            raise found
        return found

    def cancel(self, reference: object, *, force: bool) -> None:
        """Take note that a task is to end."""
        assert not force
        self.cancelled.append(reference)
