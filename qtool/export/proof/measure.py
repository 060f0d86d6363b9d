"""What an export measures: agreement, kernels, latency beside the float network, bytes on disk."""

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from qtool.errors import ExportError
from qtool.export.proof import gate, latency
from qtool.export.proof.control import explained, finding
from qtool.export.proof.other_size import in_other_size
from qtool.export.proof.verdict import judged
from qtool.export.proof.why_slow import Known, kernels_of, refuse_float_operators
from qtool.export.targets.target import TARGETS
from qtool.export.writing.saved import bytes_of
from qtool.integer.converted import Converted, converted_state
from qtool.integer.layers import IntegerLayer
from qtool.numerics.grid import IntegerGrid, Kind
from qtool.quantizers.health import code_findings
from qtool.reports.exports import (
    Agreement,
    Export,
    Latency,
    RuntimeVersion,
    UnprovenExport,
    WeightForm,
)
from qtool.reports.health import Finding
from qtool.reports.results import ExportDescription

SLOWER = 1.03  # times the float model: medians that are taken in turn move by less


@dataclass(frozen=True)
class Evidence:
    """What an exported file is held against.

    Attributes:
        integer: the model that the file was made of.
        batches: returns the validation set anew, images [B, C, H, W] and labels [B].
        images: [N, C, H, W]: the first is what the time is measured on.
    """

    integer: nn.Module
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
    images: Tensor


def export_report(
    path: Path,
    final_path: Path,
    described: ExportDescription,
    evidence: Evidence,
    *,
    measure: bool = False,
) -> Export:
    """Compare an ONNX file with its integer model in the runtime, and in time with a float one.

    Args:
        path: of the file.
        final_path: where the file goes, once it is proven.
        described: what `write_onnx` said of the file.
        evidence: what it is held against.
        measure: compare its time with the runtime's own quantization, too, and on all threads.
    """
    runtime, layers = TARGETS[described.target]().runtime, described.layers
    integer, batches = evidence.integer, evidence.batches
    codes = gate.check_codes(path, integer, {la.name: la.codes for la in layers}, runtime)
    compared, controls = judged(path, integer, batches, runtime)
    found, control = compared.agreement, compared.outputs[compared.shown].control_difference
    if described.ceil == "shifted":
        share = gate.shifted_share(integer, batches())
        found = found.model_copy(update={"ceil_shifted_share": share})
    other = in_other_size(path, integer, batches, runtime)
    if other is not None and other.disagreement:
        said = "; ".join(filter(None, (found.disagreement, other.disagreement)))
        found = found.model_copy(update={"disagreement": said})
    state = converted_state(integer)
    kernels = kernels_of(path, runtime.optimized(path), runtime, Known.of(state))
    fused = len(kernels.layers)
    times = latency.latency_beside_float(path, integer, evidence.images, runtime, measure=measure)
    return Export(
        bits_per_weight_on_disk=_bits_on_disk(described, state),
        quantized_weights=_quantized_weights(state),
        file_bytes=bytes_of(path),
        runtime=RuntimeVersion(name=runtime.name, version=runtime.version),
        codes_compared=codes,
        **found.to_json(),
        fused_share=fused / max(1, len(layers)),
        fused_layers=fused,
        quantized_layers=len(layers),
        latency_ms=times,
        left_float=described.left_float,
        file=str(final_path),
        target=described.target,
        weight_forms=weight_forms(described, kernels.layers),
        inputs=described.inputs,
        outputs=compared.outputs,
        unproven=compared.unproven,
        notes=[*described.notes, *compared.notes],
        health=[
            *_code_findings(integer),
            *_found_in(found, times if runtime.computes else None),
            *finding(found, control),
        ],
        integer_share=kernels.integer / max(1, kernels.quantizable) if runtime.computes else None,
        integer_operators=kernels.integer,
        quantizable_operators=kernels.quantizable,
        why_slow=kernels.why_slow if runtime.computes else [],
        control=controls.report if controls is not None else None,
        may_saturate=described.may_saturate,
        control_difference=control,
        other_size=other,
    )


def unproven_report(
    path: Path, final_path: Path, described: ExportDescription, integer: nn.Module
) -> UnprovenExport:
    """Return what there is to say of a file that nothing here can run.

    Args:
        path: of the file.
        final_path: where the file goes.
        described: what `write_onnx` said of the file.
        integer: the model that the file was made of.
    """
    state = converted_state(integer)
    return UnprovenExport(
        bits_per_weight_on_disk=_bits_on_disk(described, state),
        quantized_weights=_quantized_weights(state),
        file_bytes=bytes_of(path),
        left_float=described.left_float,
        file=str(final_path),
        target=described.target,
        inputs=described.inputs,
        unproven=described.unproven,
        notes=described.notes,
        health=list(_code_findings(integer)),
        may_saturate=described.may_saturate,
    )


def _quantized_weights(state: Converted) -> int:
    return sum(spec.weights for spec in state.layers if spec.weight_bits)


def _bits_on_disk(described: ExportDescription, state: Converted) -> float:
    """Return what a quantized weight takes in the file, its part of the tables included."""
    packed = sum(layer.packed_bytes for layer in described.layers if layer.weight_bits)
    return 8 * (packed + described.table_bytes) / max(1, _quantized_weights(state))


def weight_forms(
    described: ExportDescription, in_kernels: Collection[str]
) -> dict[str, WeightForm]:
    """Return what the runtime computes with, of each layer that has weights.

    Args:
        described: what `write_onnx` said of the file.
        in_kernels: names of layers in the runtime's integer kernels.
    """
    forms: dict[str, WeightForm] = {}
    for layer in described.layers:
        if layer.weight_bits is None:
            forms[layer.name] = "float"
        else:
            forms[layer.name] = (
                "integer" if layer.integer_kernel or layer.name in in_kernels else "dequantized"
            )
    for name in described.left_float:
        forms[name] = "float"
    return forms


def _code_findings(integer: nn.Module) -> Iterator[Finding]:
    """Yield what should be looked at in the codes of an integer model."""
    for name, layer in integer.named_modules():
        if isinstance(layer, IntegerLayer):
            bits, grid = layer.spec.weight_bits, layer.spec.weight_grid
            if bits is not None and grid is not None:
                rows = layer.layout.rows(layer.codes)
                yield from code_findings(name, rows, IntegerGrid(bits, cast(Kind, grid)))


def _found_in(agreement: Agreement, latency: Latency | None) -> Iterator[Finding]:
    """Yield what should be looked at in a file's outputs and in its speed."""
    if agreement.sigma == 0:
        says = "the output is the same for every image"
        yield Finding(layer="", kind="constant_output", says=says)
    if latency is not None and latency.exported > SLOWER * latency.float_:
        says = (
            f"one image takes {latency.exported:.2f} ms, in the float model {latency.float_:.2f}: "
            f"nothing is gained in time"
        )
        yield Finding(layer="", kind="slower_than_float", says=says)


def refuse(report: Export, described: ExportDescription, *, strict: bool = False) -> None:
    """Check that the runtime and the integer model agree.

    Args:
        report: of the file.
        described: what `write_onnx` said of it.
        strict: check also that nothing runs in float between quantized operators.

    Raises:
        ExportError: If they do not; says how, and what may be behind it.
    """
    if report.disagreement:
        runtime = TARGETS[described.target]().runtime
        behind = explained(report, report.control_difference)
        raise ExportError(
            f"{report.file}: {runtime.title} disagrees with the integer model: "
            f"{report.disagreement}; the file was not written{'; ' if behind else ''}{behind}"
            f"{gate.hint_for(described.may_saturate)}"
        )
    if strict:
        refuse_float_operators(report.file, report.why_slow)
