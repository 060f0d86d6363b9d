"""What an export measures: latency beside the float network, kernels, bytes on disk."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import cast

import onnx
import onnx_ir as ir
from torch import Tensor, nn

from qtool.errors import ExportError
from qtool.export import gate
from qtool.export.agreement import compare_outputs
from qtool.export.gate import run
from qtool.export.targets.target import TARGETS, Runtime
from qtool.export.trace import Call, traced
from qtool.integer.converted import converted_state
from qtool.integer.layers import IntegerLayer
from qtool.numerics.grid import IntegerGrid, Kind
from qtool.quantizers.health import code_findings
from qtool.reports.health import Finding
from qtool.reports.results import (
    Agreement,
    Export,
    ExportDescription,
    Latency,
    RuntimeVersion,
    WeightForm,
)

SLOWER = 1.1  # times the float model: a median of 30 runs moves by some percent
FLOAT_OPSET = 18  # of the float file, which is only timed


def export_float(model: nn.Module, example: Tensor, path: Path) -> None:
    """Write a float model as plain ONNX, to measure against.

    Raises:
        ExportError: If torch.onnx cannot express the model.
    """
    model = model.cpu().eval()
    onnx.save(ir.to_proto(traced(model, Call(model, example, None), FLOAT_OPSET)), str(path))


def latencies(
    paths: Sequence[Path], image: Tensor, runtime: Runtime, *, rounds: int = 30
) -> list[float]:
    """Return each file's median milliseconds for one image on one thread, measured in turn."""
    sessions = [runtime.open(path, threads=1) for path in paths]
    times: list[list[float]] = [[] for _ in paths]
    for turn in range(rounds + 3):
        for session, taken in zip(sessions, times, strict=True):
            started = time.perf_counter()
            run(session, image)
            if turn >= 3:  # the first runs allocate
                taken.append(1000 * (time.perf_counter() - started))
    return [median(taken) for taken in times]


def latency_beside_float(
    path: Path, float_model: nn.Module, image: Tensor, runtime: Runtime
) -> Latency:
    """Return the times of a file and of a float model, whose own file is written beside it."""
    float_path = path.with_name(f"{path.name}.float.onnx")
    try:
        export_float(float_model, image, float_path)
        float_ms, exported_ms = latencies([float_path, path], image, runtime)
    finally:
        float_path.unlink(missing_ok=True)
    return Latency.model_validate({"float": float_ms, "exported": exported_ms})


@dataclass(frozen=True)
class Evidence:
    """What an exported file is held against.

    Attributes:
        integer: the model that the file was made of.
        float_model: of the same architecture, whatever its weights.
        batches: returns the validation set anew, images [B, C, H, W] and labels [B].
        image: [1, C, H, W], what the time is measured on.
    """

    integer: nn.Module
    float_model: nn.Module
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    image: Tensor


def export_report(
    path: Path, final_path: Path, described: ExportDescription, evidence: Evidence
) -> Export:
    """Compare an ONNX file with its integer model in the runtime, and in time with a float one.

    Args:
        path: of the file.
        final_path: where the file goes, once it is proven.
        described: what `write_onnx` said of the file.
        evidence: what it is held against.
    """
    runtime, layers = TARGETS[described.target]().runtime, described.layers
    integer, batches = evidence.integer, evidence.batches
    codes = gate.check_codes(path, integer, {la.name: la.codes for la in layers}, runtime)
    compared = compare_outputs(runtime.open(path), integer, batches())
    found = compared.agreement
    if described.ceil == "shifted":
        share = gate.shifted_share(integer, batches())
        found = found.model_copy(update={"ceil_shifted_share": share})
    graph = runtime.optimized(path)
    fused = sum(node.op_type in runtime.integer_kernels for node in graph.node)
    latency = latency_beside_float(path, evidence.float_model, evidence.image, runtime)
    weights = sum(spec.weights for spec in converted_state(integer).layers if spec.weight_bits)
    packed = sum(layer.packed_bytes for layer in layers if layer.weight_bits)
    return Export(
        bits_per_weight_on_disk=8 * (packed + described.table_bytes) / max(1, weights),
        quantized_weights=weights,
        file_bytes=path.stat().st_size,
        runtime=RuntimeVersion(name=runtime.name, version=runtime.version),
        codes_compared=codes,
        **found.to_json(),
        fused_share=fused / max(1, len(layers)),
        fused_layers=fused,
        quantized_layers=len(layers),
        latency_ms=latency,
        left_float=described.left_float,
        file=str(final_path),
        target=described.target,
        weight_forms=weight_forms(described),
        inputs=described.inputs,
        outputs=compared.outputs,
        unproven=compared.unproven,
        notes=[*described.notes, *compared.notes],
        health=[*_code_findings(integer), *_found_in(found, latency)],
    )


def weight_forms(described: ExportDescription) -> dict[str, WeightForm]:
    """Return what the runtime computes with, of each layer that has weights."""
    forms: dict[str, WeightForm] = {}
    for layer in described.layers:
        if layer.weight_bits is None:
            forms[layer.name] = "float"
        else:
            forms[layer.name] = "integer" if layer.integer_kernel else "dequantized"
    for name in described.left_float:
        forms[name] = "float"
    return forms


def _code_findings(integer: nn.Module) -> Iterator[Finding]:
    """Yield what should be looked at in the codes of an integer model."""
    for name, layer in integer.named_modules():
        if isinstance(layer, IntegerLayer):
            bits, grid = layer.spec.weight_bits, layer.spec.weight_grid
            if bits is not None and grid is not None:
                yield from code_findings(name, layer.codes, IntegerGrid(bits, cast(Kind, grid)))


def _found_in(agreement: Agreement, latency: Latency) -> Iterator[Finding]:
    """Yield what should be looked at in a file's outputs and in its speed."""
    if agreement.sigma == 0:
        says = "the output is the same for every image"
        yield Finding(layer="", kind="constant_output", says=says)
    if latency.exported > SLOWER * latency.float_:
        says = (
            f"one image takes {latency.exported:.2f} ms, in the float model {latency.float_:.2f}: "
            f"nothing is gained in time"
        )
        yield Finding(layer="", kind="slower_than_float", says=says)


def refuse_disagreement(report: Export, described: ExportDescription) -> None:
    """Check that the runtime and the integer model agree.

    Raises:
        ExportError: If they do not; says how, and what may be behind it.
    """
    if report.disagreement:
        runtime = TARGETS[described.target]().runtime
        raise ExportError(
            f"{report.file}: {runtime.title} disagrees with the integer model: "
            f"{report.disagreement}; the file was not written"
            f"{gate.hint_for(layer.weight_bits for layer in described.layers)}"
        )
