"""What every target gives: how a file is written for a runtime, and how it is run there.

To add one, write a file beside this one with a function that returns a Target and is decorated with
`@TARGETS.add`: its name is the target's. Every file of this folder is loaded when the table is
first asked, so that none may import its runtime, or onnx, before it is asked to run something.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qtool.errors import MissingRuntimeError
from qtool.registry import Registry
from qtool.stopping import held_back, interrupted

if TYPE_CHECKING:
    import onnx

Array = NDArray[np.generic]
DEFAULT = "onnxruntime"
Weights = Literal["packed", "int8", "int4", "int2", "float", "qonnx"]
Activations = Literal["qdq", "arithmetic", "qonnx"]
Saturation = Literal["unsigned", "seven_bits", "allow"]


class Session(Protocol):
    """A file, opened in a runtime."""

    @property
    def inputs(self) -> list[str]:
        """Names of its inputs."""
        ...

    @property
    def batch(self) -> int | None:
        """The number of images that it takes at once; None for any."""
        ...

    def run(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by its name, such as logits [B, classes], for inputs by theirs."""
        ...

    def constants(self, names: list[str]) -> list[Array]:
        """Return outputs of a file that takes no input."""
        ...


class Runtime(Protocol):
    """How files are run.

    Attributes:
        name: as reports have it.
        title: as people know it.
        version: of the library that is installed.
        integer_kernels: operators of its own graphs that compute layers in integers.
        integer_joins: those that compute additions, products, poolings and the like in integers.
        shows_weights: whether `optimized` has the weights that it computes with.
        computes: whether it is made to compute, so that its kernels and its times tell something;
            else it only says what a file says.
        quantizes: whether it has a quantization of its own, to be timed against.
    """

    name: str
    title: str
    version: str
    integer_kernels: tuple[str, ...]
    integer_joins: tuple[str, ...]
    shows_weights: bool
    computes: bool
    quantizes: bool

    def open(self, model: Path | bytes, *, threads: int = 0, plainly: bool = False) -> Session:
        """Open a file, or its bytes.

        Args:
            model: the file.
            threads: 0 are the runtime's own choice.
            plainly: at the lowest level of optimization that it has.

        Raises:
            InputError: If the runtime cannot load it.
        """
        ...

    def quantize(self, given: Path, made: Path, batches: Sequence[Array]) -> None:
        """Write a float file as its own quantization has it, calibrated on batches of inputs.

        Raises:
            ExportError: If it cannot.
        """
        ...

    def optimized(self, model: "onnx.ModelProto | Path") -> "onnx.GraphProto":
        """Return the graph that it makes of a model, before it is laid out for one machine.

        A runtime whose graphs are of another kind says what they compute in ONNX's operators, with
        the type of each tensor under `value_info`.

        Raises:
            InputError: If it cannot load a file.
            ExportError: If it cannot load a model in memory, which is being exported.
        """
        ...


@dataclass(frozen=True)
class Library:
    """The Python package that a runtime is.

    Attributes:
        module: as it is imported.
        minimum: its oldest version that reads the target's files right.
        title: as people know it.
        extra: of qtool, that installs it; "" where qtool needs it anyway.
    """

    module: str
    minimum: str
    title: str
    extra: str = ""

    @property
    def advice(self) -> str:
        """What installs it."""
        return f'pip install "{self.module}>={self.minimum}"'

    def is_installed(self) -> bool:
        """Tell whether it is there, whatever its version, without loading it."""
        return find_spec(self.module) is not None

    def refuse_unless_installed(self) -> None:
        """Check that it is there, without loading it.

        Raises:
            MissingRuntimeError: If it is not; says what installs it.
        """
        if not self.is_installed():
            raise MissingRuntimeError(f"{self.title} is not installed; {self.advice}")

    def refuse_older(self, version: str) -> None:
        """Check the version that is there.

        Raises:
            MissingRuntimeError: If it is older than the oldest that reads the files right.
        """
        if _numbers(version) < _numbers(self.minimum):
            raise MissingRuntimeError(
                f"{self.title} {version} is older than {self.minimum}, the first that reads these "
                f"files right; {self.advice}"
            )


def _numbers(version: str) -> tuple[int, ...]:
    """Return a version's first numbers, such as (1, 24, 1)."""
    return tuple(int(number) for number in re.findall(r"\d+", version.split("-")[0])[:3])


@dataclass(frozen=True)
class Target:
    """How a file for one runtime is written, and how it is run.

    Attributes:
        opset: version of the standard operators.
        library: what the file is proven with, be it the runtime it is for or one that reads alike.
        run_in: makes the runtime that proves it, of that library.
        weights: how codes stand in the file: `packed`, at their true width in tables that are
            looked up to int8; `int8`, as they are; `int4` and `int2`, of the native type, with a
            Cast to int8; `float`, packed in tables of float numbers; `qonnx`, under its Quant.
        activations: `qdq`, QuantizeLinear, Clip on bytes, DequantizeLinear; `arithmetic`, Div,
            Round, Clip, Mul on float numbers; `qonnx`, its Quant and BipolarQuant.
        mixed: choose each weight's form by what the runtime makes of it; else what `weights` says
            stands before all of them.
        saturation: of layers that could saturate without VNNI: `unsigned`, as uint8 around 128
            where that is cheap; `seven_bits`, refused, as the model has to be converted with
            --no-saturation; `allow`, nothing is done, as the runtime's sums are exact.
        guards_sums: keep the runtime from adding what is not yet rounded, see `writing.added`.
        ir_version: of the file; None for what the opset came with.
        batch: what a file that says nothing else of it takes at once; None for any number.
        resizes: its Resize makes pictures smaller as Pillow does; else that is written as products.
        why_fixed: height and width are fixed in its files, whatever is asked; "" where they may be
            open.
    """

    opset: int
    library: Library
    run_in: Callable[[], Runtime]
    weights: Weights = "packed"
    activations: Activations = "qdq"
    mixed: bool = False
    saturation: Saturation = "allow"
    guards_sums: bool = False
    ir_version: int | None = None
    batch: int | None = None
    resizes: bool = True
    why_fixed: str = ""

    @property
    def any_size(self) -> bool:
        """Whether height and width may be open in its files."""
        return not self.why_fixed

    @property
    def runtime(self) -> Runtime:
        """What a file is proven in, loaded when it is asked for.

        Raises:
            MissingRuntimeError: If it is not installed, or too old.
        """
        self.library.refuse_unless_installed()
        try:
            with held_back():  # inside its own code a signal would become an ImportError
                runtime = self.run_in()
        except ImportError as error:
            if interrupted():
                raise KeyboardInterrupt from error
            raise MissingRuntimeError(
                f"{self.library.title} cannot be loaded: {error}; {self.library.advice}"
            ) from error
        self.library.refuse_older(runtime.version)
        return runtime

    @property
    def packed(self) -> bool:
        """Whether codes below 8 bits share bytes that tables unpack."""
        return self.weights in ("packed", "float")

    @property
    def sums_bytes(self) -> bool:
        """Whether a runtime may run layers in integer kernels; else it computes them in float."""
        return self.activations == "qdq"

    @property
    def unsigned(self) -> bool:
        """Whether weights that could saturate may be written as uint8 around 128."""
        return self.saturation == "unsigned"


class Targets(Registry[Callable[[], Target]]):
    """The table of targets, filled when it is first asked: some files need others of the folder."""

    _filled = False

    def names(self) -> list[str]:
        """Return the names of all targets, the usual one first."""
        self._fill()
        return sorted(self._members, key=lambda name: (name != DEFAULT, name))

    def __contains__(self, name: object) -> bool:
        self._fill()
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Callable[[], Target]:
        self._fill()
        return super().__getitem__(name)

    def _fill(self) -> None:
        if not self._filled:
            self._filled = True
            for found in iter_modules([str(Path(__file__).parent)]):
                import_module(f"{__package__}.{found.name}")


TARGETS = Targets("target")
