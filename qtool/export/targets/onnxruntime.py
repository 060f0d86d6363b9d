"""ONNX Runtime on the CPU: int8 kernels from packed weights."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qtool.errors import ExportError, InputError
from qtool.export.targets.target import TARGETS, Array, Library, Target
from qtool.files.scratch import scratch

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

ADDED = re.compile(r"_token_\d+$")  # the runtime numbers nodes that it joined
KERNEL = "_kernel_time"  # what ends the name of an event that is a node's computation


EXTERNAL = "session.optimized_model_external_initializers"  # how the runtime calls tensors beside


class OnnxSession:
    """A file, opened in ONNX Runtime."""

    def __init__(self, session: "ort.InferenceSession") -> None:
        self._session = session

    @property
    def inputs(self) -> list[str]:
        """Names of the file's inputs."""
        return [given.name for given in self._session.get_inputs()]

    @property
    def batch(self) -> int | None:
        """The number of images that the file takes at once; None for any."""
        sizes = [given.shape[0] for given in self._session.get_inputs() if given.shape]
        return sizes[0] if sizes and isinstance(sizes[0], int) else None

    @property
    def shapes(self) -> dict[str, list[object]]:
        """Sizes of the file's inputs, by their names; a word or None for one that is open."""
        return {given.name: list(given.shape) for given in self._session.get_inputs()}

    @property
    def types(self) -> dict[str, str]:
        """What the file's inputs are made of, by their names, such as tensor(float)."""
        return {given.name: given.type for given in self._session.get_inputs()}

    @property
    def outputs(self) -> dict[str, list[object]]:
        """Sizes of the file's outputs, by their names; a word or None for one that is open."""
        return {made.name: list(made.shape) for made in self._session.get_outputs()}

    @property
    def metadata(self) -> dict[str, str]:
        """What the file says of itself."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    def run(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by its name, for inputs by theirs.

        Raises:
            ExportError: If a kernel of the runtime refuses what the file gives it.
        """
        names = [made.name for made in self._session.get_outputs()]
        found = self._run(names, dict(given))
        return dict(zip(names, found, strict=True))

    def end_profiling(self) -> str:
        """Return the file of what each node took, of a session that was opened to measure that."""
        return self._session.end_profiling()

    def constants(self, names: list[str]) -> list[Array]:
        """Return outputs of a file that takes no input.

        Raises:
            ExportError: If a kernel refuses them, or they are of a type that NumPy has not.
        """
        return self._run(names, {})

    def _run(self, names: list[str], given: dict[str, Array]) -> list[Array]:
        try:
            return [np.asarray(value) for value in self._session.run(names, given)]
        except Exception as error:
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise ExportError(f"ONNX Runtime cannot run the file: {reason}") from error


class OnnxRuntime:
    """ONNX Runtime's CPU provider, at its default optimization level."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    integer_kernels: tuple[str, ...] = (
        "QLinearConv",
        "QGemm",
        "QLinearMatMul",
        "MatMulIntegerToFloat",
    )
    integer_joins: tuple[str, ...] = (
        "QLinearAdd",
        "QLinearMul",
        "QLinearConcat",
        "QLinearAveragePool",
        "QLinearGlobalAveragePool",
        "QLinearReduceMean",
        "QLinearSigmoid",
        "QLinearLeakyRelu",
        "QLinearSoftmax",
        "QLinearWhere",
    )
    shows_weights = True
    computes = True
    quantizes = True

    def __init__(self) -> None:
        import onnxruntime as ort

        self.version: str = ort.__version__

    def open(self, model: Path | bytes, *, threads: int = 0, plainly: bool = False) -> OnnxSession:
        """Open a file, or its bytes; plainly, with no optimization at all.

        Where no number of threads is asked for, they sleep between runs, and not spin: something
        else has work to do then.

        Raises:
            InputError: If the runtime cannot load it.
        """
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        if not threads:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if plainly:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        return self._open(model, options)

    def profile(
        self, model: Path, given: Mapping[str, Array], rounds: int
    ) -> list[tuple[str, str, float]]:
        """Run a file on one thread; return what each node of the runtime's own graph takes.

        Returns:
            Operator, name of the node, and milliseconds for one run, on average.

        Raises:
            InputError: If the runtime cannot load it.
        """
        import onnxruntime as ort

        with scratch() as folder:
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / "profile")
            session = self._open(model, options)
            for _ in range(rounds):
                session.run(given)
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        taken: dict[tuple[str, str], float] = defaultdict(float)
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith(KERNEL):
                name = ADDED.sub("", event["name"].removesuffix(KERNEL))
                key = (event["args"]["op_name"], name)
                taken[key] += event["dur"] / 1000 / rounds
        return [(operator, name, ms) for (operator, name), ms in taken.items()]

    def quantize(self, given: Path, made: Path, batches: Sequence[Array]) -> None:
        """Write a float file as `onnxruntime.quantization.quantize_static` has it.

        Raises:
            ExportError: If it cannot.
        """
        from qtool.export.targets.onnxruntime_static import quantize

        quantize(given, made, batches)

    def optimized(self, model: "onnx.ModelProto | Path") -> "onnx.GraphProto":
        """Return the graph that the runtime makes of a model; this machine's layouts are left out.

        Raises:
            InputError: If the runtime cannot load a file.
            ExportError: If it cannot load a model in memory, which is being exported.
        """
        import onnx
        import onnxruntime as ort

        from qtool.export.writing import saved

        with scratch() as folder:
            given, made = folder / "model.onnx", folder / "optimized.onnx"
            if isinstance(model, Path):
                given = model
            else:
                saved.save(model, given)
            options = ort.SessionOptions()
            options.optimized_model_filepath = str(made)
            extended = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.graph_optimization_level = extended
            if saved.may_grow_large(given):
                name = f"{made.name}.data"
                options.add_session_config_entry(f"{EXTERNAL}_file_name", name)
                options.add_session_config_entry(f"{EXTERNAL}_min_size_in_bytes", "1024")
            try:
                self._open(given, options)
            except InputError as error:
                if isinstance(model, Path):
                    raise
                raise ExportError(str(error).removeprefix(f"{given}: ")) from error
            return onnx.load(str(made)).graph

    def _open(self, model: Path | bytes, options: "ort.SessionOptions") -> OnnxSession:
        import onnxruntime as ort

        options.log_severity_level = 3
        given = model if isinstance(model, bytes) else str(model)
        try:
            session = ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            reason = str(error).splitlines()[0]
            name = "a model in memory" if isinstance(model, bytes) else model
            raise InputError(f"{name}: {self.title} cannot load it: {reason}") from error
        return OnnxSession(session)


def onnxruntime_from(minimum: str) -> Library:
    """Return ONNX Runtime, from a version on."""
    return Library("onnxruntime", minimum, "ONNX Runtime")


@TARGETS.add
def onnxruntime() -> Target:
    """ONNX Runtime 1.19 or later on a CPU: int8 kernels from packed weights."""
    return Target(
        opset=21,
        library=onnxruntime_from("1.19"),
        run_in=OnnxRuntime,
        mixed=True,
        saturation="unsigned",
    )
