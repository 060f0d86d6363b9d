"""What an ONNX file holds, what is wrong with what it says of itself, and what stays float."""

from pathlib import Path

import onnx

from qtool.errors import InputError
from qtool.export.proof.damage import why_damaged
from qtool.export.proof.lint import lint
from qtool.export.proof.why_slow import Known, kernels_of
from qtool.export.reading import read_model
from qtool.export.targets.target import TARGETS, Runtime
from qtool.export.writing import annotation
from qtool.export.writing.file_digest import state_of
from qtool.export.writing.saved import bytes_of, is_large
from qtool.files.reading import intact
from qtool.integer.layers import LayerSpec
from qtool.reports.exports import FloatOperator
from qtool.reports.inspections import InspectedLayer, Inspection

READ_IN = "onnxruntime"  # the target whose runtime takes every ONNX file


def read_onnx(path: Path) -> onnx.ModelProto:
    """Return a model that ONNX accepts.

    Raises:
        InputError: If the file is missing or no valid ONNX model.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give an ONNX file")
    model = read_model(path)
    try:
        onnx.checker.check_model(str(path) if is_large(model) else model)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path}: not an ONNX model: {reason}") from error
    return model


def inspect_onnx(path: Path) -> Inspection:
    """Return what an ONNX file holds, what is wrong with what it says, and what stays float."""
    model, runtime = read_onnx(path), TARGETS[READ_IN]().runtime
    said = annotation.read_metadata(model)
    datatypes = {a.tensor: a.datatype for a in annotation.read_annotations(model.graph)}
    with intact(path, "what qtool wrote into it is damaged"):
        layers = [
            InspectedLayer.model_validate(
                {
                    "layer": layer["name"],
                    "weight": "x".join(map(str, layer["shape"])),
                    "weight bits": layer["weight_bits"] or 32,
                    "input bits": layer["input_bits"] or 32,
                    "bytes": layer["packed_bytes"],
                    "datatype": datatypes.get(layer["codes"], ""),
                    "integer kernel": layer["integer_kernel"],
                }
            )
            for layer in said.get("layers", [])
        ]
        specs = [LayerSpec.model_validate(layer) for layer in said.get("layers", [])]
        values = any(spec.output_site for spec in specs)
        known = Known({s.name: s for s in specs}, said.get("left_float", {}), values=values)
        problems, islands = lint(model, runtime), _islands(path, known, runtime)
    damaged = why_damaged(path) if state_of(path).kind == "damaged" else ""
    found = Inspection(
        source=str(path),
        kind="ONNX model",
        producer=model.producer_name,
        opset=max(item.version for item in model.opset_import),
        nodes=len(model.graph.node),
        file_bytes=bytes_of(path),
        annotations=len(datatypes),
        layers=layers,
        left_float=said.get("left_float", {}),
        problems=[damaged, *problems] if damaged else problems,
    )
    more = {
        "may_saturate": said.get("may_saturate"),
        "float_islands": islands,
        "damaged": damaged,
    }
    return found.model_copy(update={key: value for key, value in more.items() if value})


def _islands(path: Path, known: Known, runtime: Runtime) -> list[FloatOperator]:
    """Return what runs in float between quantized operators; none where the runtime has no say."""
    try:
        graph = runtime.optimized(path)
    except InputError:  # operators of another domain, or an opset that is newer
        return []
    return kernels_of(path, graph, runtime, known).why_slow
