"""ONNX Runtime on the CPU: sessions, and the graph that it really runs."""

import tempfile
from pathlib import Path

import onnx
import onnxruntime

from qtool.errors import InputError

INTEGER_KERNELS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
Session = onnxruntime.InferenceSession
RUNTIME_VERSION: str = onnxruntime.__version__


def open_session(
    model: Path | bytes, *, threads: int = 0, optimized: Path | None = None
) -> Session:
    """Open a file in ONNX Runtime on the CPU, at its default optimization level.

    Args:
        model: path of the ONNX file, or its bytes.
        threads: for one operator; 0 is the runtime's own choice.
        optimized: where the runtime writes its own graph; layouts of this machine are left out.

    Raises:
        InputError: If the runtime cannot load the file.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
        extended = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.graph_optimization_level = extended
    try:
        given = model if isinstance(model, bytes) else str(model)
        return Session(given, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).splitlines()[0]
        name = "a model in memory" if isinstance(model, bytes) else model
        raise InputError(f"{name}: ONNX Runtime cannot load it: {reason}") from error


def optimized_graph(path: Path) -> onnx.GraphProto:
    """Return the graph that ONNX Runtime makes of a file, before it is laid out for one machine.

    Raises:
        InputError: If the runtime cannot load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, optimized=optimized)
        return onnx.load(str(optimized)).graph


def optimized_model(model: onnx.ModelProto) -> onnx.GraphProto:
    """Return the graph that ONNX Runtime makes of a model in memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, str(path))
        return optimized_graph(path)
