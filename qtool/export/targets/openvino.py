"""OpenVINO on the CPU: every layer in int8 kernels, from packed weights of at most 7 bits."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from qtool.errors import ExportError, InputError
from qtool.export.targets.target import TARGETS, Array, Library, Target

if TYPE_CHECKING:
    import onnx

OPERATORS = {
    "Convolution": ("Conv", "QLinearConv"),
    "FullyConnected": ("MatMul", "QLinearMatMul"),
    "MatMul": ("MatMul", "QLinearMatMul"),
    "Deconvolution": ("ConvTranspose", "ConvTranspose"),
    "FakeQuantize": ("QuantizeLinear", "QuantizeLinear"),
    "Concatenation": ("Concat", "Concat"),
    "Reorder": ("Identity", "Identity"),
    "Reshape": ("Reshape", "Reshape"),
}
"""Kind of OpenVINO's kernel -> what ONNX calls it in float, and in integers; others have the name
of the file's operator."""
IN_INTEGERS = "_I8"  # ends the name of a kernel that multiplies bytes


# What is used of openvino, which need not be installed where types are checked.
class Dimension(Protocol):
    """A size, or one that is open."""

    is_static: bool
    get_length: Callable[[], int]


class Port(Protocol):
    """An input or output of a file or a kernel."""

    any_name: str
    partial_shape: Sequence[Dimension]
    get_names: Callable[[], set[str]]
    get_node: Callable[[], "Kernel"]
    get_source_output: Callable[[], "Port"]
    get_element_type: Callable[[], "ElementType"]


class ElementType(Protocol):
    """A type of numbers."""

    to_string: Callable[[], str]


class Kernel(Protocol):
    """A node of a runtime graph."""

    get_friendly_name: Callable[[], str]
    get_rt_info: Callable[[], Mapping[str, object]]
    get_output_size: Callable[[], int]
    inputs: Callable[[], list[Port]]
    output: Callable[[int], Port]


class RuntimeModel(Protocol):
    """What a file was compiled to."""

    get_ordered_ops: Callable[[], list[Kernel]]


class InferRequest(Protocol):
    """What runs a compiled file."""

    infer: Callable[[Mapping[str, Array]], Mapping[Port, Array]]


class Compiled(Protocol):
    """A compiled file."""

    inputs: list[Port]
    outputs: list[Port]
    create_infer_request: Callable[[], InferRequest]
    get_runtime_model: Callable[[], RuntimeModel]


class OpenVinoSession:
    """A file, compiled by OpenVINO."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled, self._request = compiled, compiled.create_infer_request()

    @property
    def inputs(self) -> list[str]:
        """Names of the file's inputs."""
        return [given.any_name for given in self._compiled.inputs]

    @property
    def batch(self) -> int | None:
        """The number of images that the file takes at once; None for any."""
        shapes = [given.partial_shape for given in self._compiled.inputs]
        first = next((shape[0] for shape in shapes if len(shape)), None)
        return first.get_length() if first is not None and first.is_static else None

    def run(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """Return every output by its name, for inputs by theirs."""
        found = self._request.infer(dict(given))
        return {made.any_name: np.array(found[made]) for made in self._compiled.outputs}

    def constants(self, names: list[str]) -> list[Array]:
        """Return outputs of a file that takes no input."""
        found = self._request.infer({})
        named = {name: made for made in self._compiled.outputs for name in made.get_names()}
        return [np.array(found[named[name]]) for name in names]


class OpenVino:
    """OpenVINO's CPU plugin, which would else compute what is float in bfloat16, where it can."""

    name = "openvino"
    title = "OpenVINO"
    integer_kernels: tuple[str, ...] = ("QLinearConv", "QLinearMatMul")
    integer_joins: tuple[str, ...] = ()
    shows_weights = False
    computes = True
    quantizes = False

    def __init__(self) -> None:
        self._library = import_module("openvino")
        self._core = self._library.Core()
        self.version: str = str(self._library.__version__).partition("-")[0]

    def open(
        self, model: Path | bytes, *, threads: int = 0, plainly: bool = False
    ) -> OpenVinoSession:
        """Open a file, or its bytes; plainly, in float throughout.

        Raises:
            InputError: If the runtime cannot load it.
        """
        return OpenVinoSession(self._compiled(model, threads=threads, plainly=plainly))

    def quantize(self, given: Path, made: Path, batches: Sequence[Array]) -> None:
        """Refuse, for OpenVINO leaves that to another library.

        Raises:
            ExportError: Always.
        """
        raise ExportError(f"{self.title} quantizes no file by itself")

    def optimized(self, model: "onnx.ModelProto | Path") -> "onnx.GraphProto":
        """Return the kernels that the runtime makes of a model, in ONNX's words.

        Their names are those of the first operator of the file that each computes.

        Raises:
            InputError: If the runtime cannot load a file.
            ExportError: If it cannot load a model in memory, which is being exported.
        """
        from qtool.export.writing.saved import loadable

        try:
            with nullcontext(model) if isinstance(model, Path) else loadable(model) as given:
                kernels = self._compiled(given).get_runtime_model().get_ordered_ops()
        except InputError as error:
            if isinstance(model, Path):
                raise
            raise ExportError(str(error).removeprefix("a model in memory: ")) from error
        return _in_onnx(kernels)

    def _compiled(
        self, model: Path | bytes, *, threads: int = 0, plainly: bool = False
    ) -> Compiled:
        import onnx

        options: dict[str, object] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        if plainly:  # of its low precision transformations
            options["LP_TRANSFORMS_MODE"] = False
        name = "a model in memory" if isinstance(model, bytes) else str(model)
        try:
            if isinstance(model, bytes):  # it would try all other formats, and say so
                onnx.load_model_from_string(model)
            else:
                onnx.load(name, load_external_data=False)
            read = self._core.read_model(io.BytesIO(model) if isinstance(model, bytes) else name)
            return self._core.compile_model(read, "CPU", options)
        except Exception as error:
            raise InputError(f"{name}: {self.title} cannot load it: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return what an error says, without the places in OpenVINO's own code."""
    places = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't", "Summary", "To ")
    lines = [line.strip(" -") for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(places)]
    return said[0] if said else repr(error)


def _in_onnx(kernels: Iterable[Kernel]) -> "onnx.GraphProto":
    """Return a runtime graph as ONNX has graphs; its constants have names, but no numbers."""
    import onnx

    graph = onnx.GraphProto(name="openvino")
    for kernel in kernels:
        info = {key: _said(kernel, key) for key in ("layerType", "primitiveType")}
        name, made = kernel.get_friendly_name(), kernel.get_output_size()
        kind = _onnx_type(kernel.output(0).get_element_type().to_string()) if made else 0
        value = onnx.helper.make_tensor_value_info(name, kind, None)
        match info["layerType"]:
            case "Input":
                graph.input.append(value)
            case "Const":
                graph.initializer.append(onnx.TensorProto(name=name, data_type=kind))
            case "Output":
                graph.output.append(onnx.ValueInfoProto(name=_sources(kernel)[0]))
            case layer:
                origins = _said(kernel, "originalLayersNames").split(",")
                place = next((one for one in origins if "/" in one), origins[0])
                integer = info["primitiveType"].endswith(IN_INTEGERS)
                operator = OPERATORS.get(layer, (place.rpartition("/")[2] or layer,) * 2)[integer]
                node = onnx.helper.make_node(operator, _sources(kernel), [name], place)
                graph.node.append(node)
                graph.value_info.append(value)
    return graph


def _said(kernel: Kernel, key: str) -> str:
    """Return what a kernel of a runtime graph says of itself."""
    value = kernel.get_rt_info()[key]
    return str(getattr(value, "value", value))


def _sources(kernel: Kernel) -> list[str]:
    """Return the names of the kernels that one reads."""
    return [value.get_source_output().get_node().get_friendly_name() for value in kernel.inputs()]


def _onnx_type(name: str) -> int:
    """Return ONNX's number for a type that OpenVINO calls so; 0 where it has none."""
    import onnx

    types = {
        "f32": onnx.TensorProto.FLOAT,
        "f16": onnx.TensorProto.FLOAT16,
        "u8": onnx.TensorProto.UINT8,
        "i8": onnx.TensorProto.INT8,
        "i32": onnx.TensorProto.INT32,
        "i64": onnx.TensorProto.INT64,
    }
    return types.get(name, 0)


@TARGETS.add
def openvino() -> Target:
    """OpenVINO 2026.4 or later on a CPU: all layers in int8 kernels; no weights that saturate."""
    return Target(
        opset=21,
        library=Library("openvino", "2026.4", "OpenVINO", extra="openvino"),
        run_in=OpenVino,
        saturation="seven_bits",
        resizes=False,  # 2026.4 leaves antialias out: photographs are 79 grey levels off
        guards_sums=True,
    )
