"""What is taken down of one pass: the calls of watched modules and of functions, in order."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from torch.overrides import TorchFunctionMode

from qtool.graph.inputs import tensors_in
from qtool.graph.module_sites import Site
from qtool.graph.recording import Call, FunctionCall, ModuleCall, Role
from qtool.graph.values import Value, Values, writes_to


@dataclass(frozen=True)
class _Running:
    """A watched module that runs now."""

    site: Site
    role: Role
    subject: Value | None
    read: tuple[Value, ...]
    given: list[Tensor]
    writes: list[int]


class Tape(TorchFunctionMode):
    """Takes down the calls of one pass, and numbers its values."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._values = Values()
        self._running: list[_Running] = []
        self._began: Counter[str] = Counter()
        self._asks = False

    def values(self, tree: object) -> tuple[Value, ...]:
        """Return the values that the tensors in a tree hold; new ones for new tensors."""
        return tuple(self._values.of(leaf) for leaf in tensors_in(tree))

    def begin(
        self, name: str, role: Role, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """Note that a watched module is called."""
        with self._asking():
            read = self.values((args, kwargs))
            subject = self._subject(args) if args else (read[0] if read else None)
            given = list(tensors_in((args, kwargs)))
            writes = [writes_to(tensor) for tensor in given]
        site = Site(name, self._began[name])
        self._running.append(_Running(site, role, subject, read, given, writes))
        self._began[name] += 1

    def end(self, name: str, output: object) -> None:
        """Note what a watched module returned; None where its call failed, or never began."""
        if not self._running or self._running[-1].site.module != name:
            return
        call = self._running.pop()
        if output is None:
            self._began[name] -= 1
            return
        with self._asking():
            if call.role == "norm" and not self._opaque:
                made = tuple(self._made_inside(leaf, call.read) for leaf in tensors_in(output))
            else:
                made = self._make(output)
            if call.writes != [writes_to(tensor) for tensor in call.given]:
                made += self._written()[1]
            shape = next((tuple(leaf.shape) for leaf in tensors_in(output)), ())
        inside = self._running[-1].site if self._running else None
        self.calls.append(
            ModuleCall(call.subject, call.read, made, call.site, call.role, shape, inside)
        )

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Note nothing while the tape itself asks tensors for what they are."""
        self._asks = True
        try:
            yield
        finally:
            self._asks = False

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function, and note it."""
        kwargs = kwargs or {}
        if self._asks:
            return func(*args, **kwargs)
        # looked up before the call: a function in place may return the very same tensor
        subject, read = self._subject(args), self._read((args, kwargs))
        given = list(tensors_in((args, kwargs)))
        before = [writes_to(tensor) for tensor in given]
        result = func(*args, **kwargs)
        # what returns neither a tensor nor nothing only asks for a shape or the like
        if result is None or any(True for _ in tensors_in(result)):
            name = getattr(func, "__name__", "")
            inside = self._running[-1].site if self._running else None
            if not self._opaque:
                made = self._make(result)
                if before != [writes_to(tensor) for tensor in given]:
                    held, written = self._written()
                    read = (*read, *(value for value in held if value not in read))
                    made = (*made, *written)
                self.calls.append(FunctionCall(subject, read, made, name, inside))
            elif read:
                self.calls.append(FunctionCall(subject, read, (), name, inside))
        return result

    @property
    def _opaque(self) -> bool:
        """Tell whether a module runs whose inside makes no values."""
        return any(call.role != "norm" for call in self._running)

    def _read(self, tree: object) -> tuple[Value, ...]:
        """Return the values in a tree; inside an opaque module, only those from outside."""
        if not self._opaque:
            return self.values(tree)
        known = (self._values.known(leaf) for leaf in tensors_in(tree))
        return tuple(value for value in known if value is not None)

    def _subject(self, args: tuple[object, ...]) -> Value | None:
        """Return the value of the first argument."""
        read = self._read(args[0]) if args and isinstance(args[0], Tensor) else ()
        return read[0] if read else None

    def _make(self, tree: object) -> tuple[Value, ...]:
        """Give every tensor in a tree a new value."""
        return tuple(self._values.new(leaf) for leaf in tensors_in(tree))

    def _made_inside(self, tensor: Tensor, read: tuple[Value, ...]) -> Value:
        """Return the value that a norm's function made; a new one where it returns what it read."""
        value = self._values.of(tensor)
        return self._values.new(tensor) if value in read else value

    def _written(self) -> tuple[tuple[Value, ...], tuple[Value, ...]]:
        """Return what tensors held that were written to since, and what they hold now."""
        pairs = list(self._values.overwritten())
        return tuple(old for old, _ in pairs), tuple(new for _, new in pairs)
