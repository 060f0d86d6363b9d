"""One ONNX file that is timed, the same network in float, and what is fed to both."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qtool.errors import ExportError, InputError
from qtool.export.proof.unrounded import write_unrounded
from qtool.export.reading import read_model
from qtool.export.targets.onnxruntime import OnnxRuntime, OnnxSession
from qtool.export.targets.target import Array
from qtool.files.reading import intact
from qtool.images.usage import Usage

SEED = 0
CALIBRATION_BATCHES = 4  # for the runtime's own quantization: ranges matter little to its time
PICTURE = 224  # pixels, where a file takes pictures of any size and does not say its own


@dataclass(frozen=True)
class TimedFile:
    """One model's files.

    Attributes:
        source: what it was opened from, for people.
        path: the file.
        others: `float` and `static` -> their files, of those that there are.
        notes: why one is not there.
    """

    source: str
    path: Path
    others: Mapping[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def beside(cls, source: str, path: Path, folder: Path, runtime: OnnxRuntime) -> "TimedFile":
        """Write a file's float form, and what the runtime makes of that, into a folder.

        Raises:
            InputError: If the runtime cannot load the file.
        """
        read_model(path, tensors=False)  # before a runtime believes what it says
        session = runtime.open(path)
        others: dict[str, Path] = {}
        notes: list[str] = []
        try:
            plain = write_unrounded(path, folder / "float.onnx", runtime)
            runtime.open(plain)
            others["float"] = plain
            batches = [
                only(inputs_of(session, path, session.batch or 1, seed=SEED + i))
                for i in range(CALIBRATION_BATCHES)
            ]
            static = folder / "static.onnx"
            runtime.quantize(plain, static, batches)
            others["static"] = static
        except (ExportError, InputError) as error:
            missing = "the runtime's own int8" if "float" in others else "float"
            notes.append(f"no time of {missing}: {error}")
        return cls(source, path, others, notes)


def only(given: Mapping[str, Array]) -> Array:
    """Return the tensor of a file's single input.

    Raises:
        ExportError: If there are several, which the runtime's own quantization is not asked for.
    """
    if len(given) > 1:
        raise ExportError(f"it takes several inputs: {', '.join(given)}")
    return next(iter(given.values()))


def inputs_of(
    session: OnnxSession, path: Path, batch: int, *, seed: int = SEED
) -> dict[str, Array]:
    """Return random inputs for a file: noise of deviation 1, or bytes where it takes bytes.

    Args:
        session: of the file.
        path: of the file, for messages.
        batch: how many images.
        seed: of the noise.

    Raises:
        InputError: If the file takes another number of images, or a size is open that nothing
            tells.
    """
    if session.batch not in (None, batch):
        raise InputError(f"{path}: takes {session.batch} images at once; give that as --batch")
    with intact(path, "what qtool wrote into it is damaged"):
        rule = Usage.of(session.metadata).preprocess
    size = rule.size if rule is not None else (PICTURE, PICTURE)
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for name, shape in session.shapes.items():
        kind = session.types[name]
        known = {0: batch}
        if len(shape) == 4:  # of any size; decoded pictures have their channels last
            known |= dict(zip((1, 2) if kind == "tensor(uint8)" else (2, 3), size, strict=True))
        sizes = [n if isinstance(n, int) else known.get(axis) for axis, n in enumerate(shape)]
        told = [n for n in sizes if n is not None]
        if len(told) < len(sizes):
            raise InputError(f"{path}: input {name} has the sizes {shape}, and nothing tells all")
        found[name] = _noise(rng, told, kind, f"{path}: input {name}")
    return found


def _noise(rng: np.random.Generator, shape: list[int], kind: str, where: str) -> Array:
    if kind == "tensor(float)":
        return rng.standard_normal(shape, np.float32)
    if kind == "tensor(uint8)":
        return rng.integers(0, 256, shape, np.uint8)
    raise InputError(f"{where} is a {kind}; only float32 and uint8 are timed")
