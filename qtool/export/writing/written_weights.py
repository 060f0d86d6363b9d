"""The weights of a traced model, each in the form that the target runs fastest."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import nn

from qtool.export.targets.target import Runtime, Target
from qtool.export.writing.added import round_before_adding
from qtool.export.writing.annotation import Annotation
from qtool.export.writing.arithmetic import to_arithmetic, with_zero_points
from qtool.export.writing.float_weights import keep_float
from qtool.export.writing.forms import choose_forms
from qtool.export.writing.packing import choose_layouts
from qtool.export.writing.quant_nodes import to_quant
from qtool.export.writing.weights import Stored, WeightWriter, to_proto
from qtool.integer.converted import Converted
from qtool.integer.layers import integer_layers
from qtool.numerics.grid import IntegerGrid

Codes = dict[str, tuple[NDArray[np.int8], int]]
"""Layer -> its codes, and the bits of their grid"""


@dataclass(frozen=True)
class Written:
    """What became of the weights of a file.

    Attributes:
        stored: layer -> where its codes stand.
        annotations: of each quantized tensor.
        integer_kernels: layers that the runtime was seen to compute in integers.
        may_run_in_integers: layers that it may.
        table_bytes: of the tables that codes are unpacked by.
    """

    stored: dict[str, Stored]
    annotations: list[Annotation]
    integer_kernels: set[str]
    may_run_in_integers: list[str]
    table_bytes: int

    def may_saturate(self, saturating: Collection[str]) -> list[str]:
        """Return the layers that may be wrong without VNNI, of those that could saturate."""
        could = [name for name in self.may_run_in_integers if name in saturating]
        return [name for name in could if not self.stored[name].zero_point]


def weight_codes(integer: nn.Module) -> Codes:
    """Return the weight codes of each layer that has some, and the bits of their grid."""
    return {
        name: (layer.codes.cpu().numpy(), layer.spec.weight_bits)
        for name, layer in integer_layers(integer).items()
        if layer.spec.weight_bits is not None
    }


def write_weights(
    graph: ir.Model,
    state: Converted,
    codes: Codes,
    saturating: Collection[str],
    target: Target,
    *,
    runtime: Runtime | None,
) -> Written:
    """Write the weights of a traced model, and what a target wants of its values, in place.

    Args:
        graph: of the model.
        state: of the integer model.
        codes: of its weights.
        saturating: layers that could saturate.
        target: that the file is for.
        runtime: of the target, which is asked what it makes of each weight; None where it is not
            there.
    """
    writer = WeightWriter(graph, target)
    layouts = choose_layouts(codes) if target.packed else {}
    stored = {
        s.name: writer.write(s, layouts.get(s.name), saturates=s.name in saturating)
        for s in state.layers
    }
    annotations = _annotations(writer, state)  # it names the tensors that it speaks of
    if target.activations == "qonnx":
        annotations, stored = to_quant(graph.graph, state.layers, annotations, stored)
    if target.sums_bytes:
        keep_float(graph.graph)
    mixed = target.mixed and runtime is not None
    integer_kernels: set[str] = set()
    if mixed and runtime is not None:
        asked = {s.name: (stored[s.name].codes, len(s.shape)) for s in state.layers}
        forms = choose_forms(to_proto(graph), asked, target, runtime)
        integer_kernels = forms.integer
        for spec in state.layers:
            if spec.name in forms.floating:
                writer.unpack_to_float(spec.name, len(spec.shape))
    if target.guards_sums:
        round_before_adding(graph.graph)
    if target.activations == "arithmetic":
        to_arithmetic(graph.graph)
    writer.finish()
    if target.activations == "arithmetic":
        annotations = with_zero_points(annotations, graph.graph)
    may_run = [
        s.name
        for s in state.layers
        if target.sums_bytes and (not mixed or s.name in integer_kernels)
    ]
    return Written(stored, annotations, integer_kernels, may_run, writer.table_bytes)


def _annotations(writer: WeightWriter, state: Converted) -> list[Annotation]:
    """Name each quantized tensor after its layer, site or ReLU; return one annotation of each.

    Layers that share an input share its quantizer.
    """
    found = [note for spec in state.layers for note in writer.annotations(spec)]
    for spec in state.layers:
        if spec.output_site:
            found += writer.site_annotations(spec.output_site, spec.output)
    for site in state.sites:
        grid = None if site.output is None else IntegerGrid(site.output.bits, site.output.grid)
        found += writer.site_annotations(str(site.site), grid)
    for relu in state.relus:
        for index, call in enumerate(relu.calls):
            found += writer.input_annotation(str(relu.site(index)), call.integers)
    return list({item.tensor: item for item in found}.values())
