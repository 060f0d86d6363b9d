"""QONNX, which FINN and hls4ml read: Quant on float numbers, as qonnx itself computes it."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from qtool.errors import ExportError, InputError
from qtool.export.targets.target import TARGETS, Array, Library, Target

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

DOMAIN = "qonnx.custom_op"  # starts those of all its operators


# What is used of qonnx, which need not be installed where types are checked.
class CustomOp(Protocol):
    """How an operator of qonnx's own is computed."""

    execute_node: Callable[[dict[str, Array], "onnx.GraphProto"], None]


class Wrapped(Protocol):
    """A file, as qonnx holds it."""

    graph: "onnx.GraphProto"
    model: "onnx.ModelProto"
    transform: Callable[[object], "Wrapped"]
    get_tensor_shape: Callable[[str], list[int] | None]


class Standard:
    """Operators of ONNX that follow one another, in one session of ONNX Runtime."""

    def __init__(self, session: "ort.InferenceSession") -> None:
        self._session = session
        self._given = [value.name for value in session.get_inputs()]
        self._made = [value.name for value in session.get_outputs()]

    def run(self, context: dict[str, Array]) -> None:
        """Put what they make into the context of all tensors."""
        found = self._session.run(self._made, {name: context[name] for name in self._given})
        context.update(zip(self._made, map(np.asarray, found), strict=True))


class QonnxSession:
    """A file, opened in qonnx.

    Each operator of qonnx's is computed by qonnx, and what lies between two of them by ONNX
    Runtime, as `execute_onnx` does; but constants are computed once, and sessions kept. Plainly, it
    is `execute_onnx` itself.
    """

    def __init__(self, model: Wrapped, *, plainly: bool = False) -> None:
        self._model, self._graph = model, model.graph
        self._execute = import_module("qonnx.core.onnx_exec").execute_onnx if plainly else None
        self._registry = import_module("qonnx.custom_op.registry")
        self._versions = {item.domain: item.version for item in model.model.opset_import}
        self._constants = _constants(self._graph)
        for node in self._graph.node:
            if _is_own(node) and all(name in self._constants for name in node.input):
                self._compute(node, self._constants)
        self._steps: list[Standard | onnx.NodeProto] = [] if plainly else self._split()

    @property
    def inputs(self) -> list[str]:
        """Names of the file's inputs."""
        return [value.name for value in self._graph.input if value.name not in self._constants]

    @property
    def batch(self) -> int | None:
        """The number of images that the file takes at once."""
        shapes = [self._model.get_tensor_shape(name) for name in self.inputs]
        return next((shape[0] for shape in shapes if shape), None)

    def run(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by its name, for inputs by theirs."""
        if self._execute is not None:
            found = self._execute(self._model, dict(given))
            return {name: np.asarray(value) for name, value in found.items()}
        context = {**self._constants, **given}
        for step in self._steps:
            if isinstance(step, Standard):
                step.run(context)
            else:
                self._compute(step, context)
        return {value.name: context[value.name] for value in self._graph.output}

    def constants(self, names: list[str]) -> list[Array]:
        """Return the codes of outputs of a file that takes no input: real numbers over scales."""
        makers = {name: node for node in self._graph.node for name in node.output}
        return [
            np.rint(
                np.divide(self._constants[name], self._constants[makers[name].input[1]])
            ).astype(np.int8)
            for name in names
        ]

    def _compute(self, node: "onnx.NodeProto", context: dict[str, Array]) -> None:
        """Let qonnx compute one of its own operators."""
        version = self._versions.get(node.domain, 1)
        operator: CustomOp = self._registry.getCustomOp(node, onnx_opset_version=version)
        operator.execute_node(context, self._graph)

    def _split(self) -> "list[Standard | onnx.NodeProto]":
        """Return what is to be computed, in order, but for what is constant."""
        steps: list[Standard | onnx.NodeProto] = []
        run: list[onnx.NodeProto] = []
        for node in self._graph.node:
            if not _is_own(node):
                run.append(node)
                continue
            if node.output[0] in self._constants:
                continue
            if run:
                steps.append(self._in_one(run))
                run = []
            steps.append(node)
        return [*steps, self._in_one(run)] if run else steps

    def _in_one(self, nodes: "Sequence[onnx.NodeProto]") -> Standard:
        """Return operators of ONNX that follow one another as one session."""
        import onnx
        import onnxruntime as ort

        made = {name for node in nodes for name in node.output if name}
        read = dict.fromkeys(name for node in nodes for name in node.input if name)
        members = {id(node) for node in nodes}
        later = {
            name for node in self._graph.node if id(node) not in members for name in node.input
        }
        later |= {value.name for value in self._graph.output}
        graph = self._graph
        kinds = {v.name: v for v in (*graph.input, *graph.output, *graph.value_info)}
        given = [name for name in read if name not in made and name not in self._constants]
        small = onnx.helper.make_graph(
            nodes,
            "standard",
            [kinds[name] for name in given],
            [onnx.ValueInfoProto(name=name) for name in sorted(made & later)],
            [
                onnx.numpy_helper.from_array(self._constants[name], name)
                for name in read
                if name in self._constants
            ],
        )
        opset = onnx.helper.make_opsetid("", self._versions[""])
        model = onnx.helper.make_model(small, opset_imports=[opset])
        model.ir_version = self._model.model.ir_version
        options = ort.SessionOptions()
        options.log_severity_level = 3
        text = model.SerializeToString()
        return Standard(ort.InferenceSession(text, options, providers=["CPUExecutionProvider"]))


class Qonnx:
    """What qonnx makes of a file: it computes what the file says, and is no product's runtime."""

    name = "qonnx"
    title = "qonnx"
    integer_kernels: tuple[str, ...] = ()
    integer_joins: tuple[str, ...] = ()
    shows_weights = False
    computes = False
    quantizes = False

    def __init__(self) -> None:
        self._wrap = import_module("qonnx.core.modelwrapper").ModelWrapper
        self._infer = import_module("qonnx.transformation.infer_shapes").InferShapes
        self.version: str = import_module("importlib.metadata").version("qonnx")

    def open(self, model: Path | bytes, *, threads: int = 0, plainly: bool = False) -> QonnxSession:
        """Open a file, or its bytes; plainly, operator by operator.

        Raises:
            InputError: If qonnx cannot load it.
        """
        import onnx

        try:
            if isinstance(model, bytes):
                read = onnx.load_model_from_string(model)
            else:
                read = onnx.load(str(model))
            del read.graph.value_info[:]  # qonnx takes no value that is listed twice
            wrapped: Wrapped = self._wrap(read)
            inferred = wrapped.transform(self._infer()) if read.graph.input else wrapped
            return QonnxSession(inferred, plainly=plainly)
        except Exception as error:
            name = "a model in memory" if isinstance(model, bytes) else str(model)
            words = str(error).strip().splitlines()
            reason = words[0] if words else repr(error)
            raise InputError(f"{name}: {self.title} cannot load it: {reason}") from error

    def quantize(self, given: Path, made: Path, batches: Sequence[Array]) -> None:
        """Refuse, for qonnx quantizes nothing.

        Raises:
            ExportError: Always.
        """
        raise ExportError(f"{self.title} quantizes no file by itself")

    def optimized(self, model: "onnx.ModelProto | Path") -> "onnx.GraphProto":
        """Return the graph as it is, for nothing in it is optimized.

        Raises:
            InputError: If qonnx cannot load a file.
            ExportError: If it cannot load a model in memory, which is being exported.
        """
        import onnx

        if isinstance(model, Path):
            self.open(model)
            return onnx.load(str(model)).graph
        try:
            self.open(model.SerializeToString())
        except InputError as error:
            raise ExportError(str(error).removeprefix("a model in memory: ")) from error
        return model.graph


def _is_own(node: "onnx.NodeProto") -> bool:
    """Tell whether an operator is qonnx's own."""
    return node.domain.startswith(DOMAIN)


def _constants(graph: "onnx.GraphProto") -> dict[str, Array]:
    """Return a graph's constants by name."""
    import onnx

    return {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}


@TARGETS.add
def qonnx() -> Target:
    """FINN and hls4ml: Quant and BipolarQuant of QONNX, one image; proven in qonnx 1.0 or later."""
    return Target(
        opset=18,
        library=Library("qonnx", "1.0", "qonnx", extra="qonnx"),
        run_in=Qonnx,
        weights="qonnx",
        activations="qonnx",
        batch=1,
        why_fixed="FINN and hls4ml take files of fixed sizes",
    )
