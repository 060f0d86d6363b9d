"""What every target gives: how a file is written for a runtime, and how it is run there.

To add one, write a file beside this one with a function that returns a Target and is decorated with
`@TARGETS.add`: its name is the target's. Every file of this folder is loaded with this one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from qtool.registry import Registry

Array = NDArray[np.generic]
TARGETS: "Registry[Callable[[], Target]]" = Registry("target")


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
    """

    name: str
    title: str
    version: str
    integer_kernels: tuple[str, ...]
    integer_joins: tuple[str, ...]

    def open(self, model: Path | bytes, *, threads: int = 0) -> Session:
        """Open a file, or its bytes; 0 threads are the runtime's own choice.

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

    def optimized(self, model: onnx.ModelProto | Path) -> onnx.GraphProto:
        """Return the graph that it makes of a model, before it is laid out for one machine.

        Raises:
            InputError: If it cannot load a file.
            ExportError: If it cannot load a model in memory, which is being exported.
        """
        ...


@dataclass(frozen=True)
class Target:
    """How a file for one runtime is written, and how it is run.

    Attributes:
        opset: version of the standard operators.
        packed: store weights at their true width, as tables that the runtime unpacks at load.
        mixed: choose each weight's form by what the runtime makes of it; else DequantizeLinear
            stays on all weights.
        runtime: what the file is proven in.
        unsigned: weights that could saturate without VNNI may be written as uint8, where that is
            cheap, for the runtime then computes exactly.
    """

    opset: int
    packed: bool
    mixed: bool
    runtime: Runtime
    unsigned: bool = False


for _found in iter_modules([str(Path(__file__).parent)]):
    if _found.name != Path(__file__).stem:
        import_module(f"{__package__}.{_found.name}")
