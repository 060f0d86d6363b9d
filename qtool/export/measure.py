"""What an export measures: latency beside the float network, kernels, bytes on disk."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import onnx
import onnx_ir as ir
from torch import Tensor, nn

from qtool.export import gate
from qtool.export.gate import run
from qtool.export.targets.onnxruntime import (
    INTEGER_KERNELS,
    RUNTIME_VERSION,
    open_session,
    optimized_graph,
)
from qtool.export.trace import traced
from qtool.integer.layers import converted_state


def export_float(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a float model as plain ONNX, to measure against.

    Raises:
        ExportError: If torch.onnx cannot express the model.
    """
    onnx.save(ir.to_proto(traced(model.cpu().eval(), example.cpu(), 18, None)), str(path))


def latencies(paths: list[Path], image: Tensor, *, rounds: int = 30) -> list[float]:
    """Return each file's median milliseconds for one image on one thread, measured in turn."""
    sessions = [open_session(path, threads=1) for path in paths]
    times: list[list[float]] = [[] for _ in paths]
    for turn in range(rounds + 3):
        for session, taken in zip(sessions, times, strict=True):
            started = time.perf_counter()
            run(session, image)
            if turn >= 3:  # the first runs allocate
                taken.append(1000 * (time.perf_counter() - started))
    return [median(taken) for taken in times]


def export_report(
    path: Path,
    integer: nn.Module,
    float_model: nn.Module,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    described: dict[str, Any],
    image: Tensor,
) -> dict[str, Any]:
    """Compare an ONNX file with its integer model in the runtime, and in time with a float one.

    Args:
        path: of the file.
        integer: that it was made of.
        float_model: of the same architecture, whatever its weights.
        batches: returns the validation set anew, images [B, C, H, W] and labels [B].
        described: what `export_onnx` said of the file.
        image: [1, C, H, W], what the time is measured on.
    """
    codes = gate.check_codes(path, integer, described["layers"])
    figures = gate.compare_outputs(path, integer, batches())
    if described["ceil"] == "shifted":
        share = gate.shifted_share(integer, batches())
        figures["ceil_shifted_share"] = share
    fused = sum(node.op_type in INTEGER_KERNELS for node in optimized_graph(path).node)
    float_path = path.with_name(f"{path.name}.float.onnx")
    try:
        export_float(float_model, image, float_path)
        float_ms, exported_ms = latencies([float_path, path], image)
    finally:
        float_path.unlink(missing_ok=True)
    layers = described["layers"]
    weights = sum(spec.weights for spec in converted_state(integer).layers if spec.weight_bits)
    packed = sum(layer["packed_bytes"] for layer in layers if layer["weight_bits"])
    return {
        "bits_per_weight_on_disk": 8 * (packed + described["table_bytes"]) / max(1, weights),
        "quantized_weights": weights,
        "file_bytes": path.stat().st_size,
        "runtime": {"name": "onnxruntime", "version": RUNTIME_VERSION},
        "codes_compared": codes,
        **figures,
        "fused_share": fused / max(1, len(layers)),
        "fused_layers": fused,
        "quantized_layers": len(layers),
        "latency_ms": {"float": float_ms, "exported": exported_ms},
        "left_float": described["left_float"],
    }
