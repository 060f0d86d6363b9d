"""The codes of every quantized value: those that a file has in its runtime, and the integer model.

Logits that agree can hide codes that do not. So the quantized tensors of a file, which its
annotations name, are put out beside its outputs, and each is held against what the integer model
has at the same place.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qtool.errors import ExportError
from qtool.export.proof.gate import run_named
from qtool.export.targets.target import Runtime
from qtool.export.writing.annotation import Annotation, read_annotations
from qtool.export.writing.names import named_inputs
from qtool.export.writing.saved import loadable, read_back
from qtool.export.writing.weights import GATE, REAL, REPEATED, WEIGHT, part_of
from qtool.graph.inputs import Inputs
from qtool.graph.module_sites import Site
from qtool.graph.sites.running import apart
from qtool.integer.joins import integer_sites
from qtool.integer.layers import IntegerLayer, integer_layers
from qtool.integer.relu import integer_relus

CODES, INPUT_CODES = "codes", "input_codes"
Keep = Callable[[str, object], None]


@dataclass(frozen=True)
class SiteCodes:
    """How the codes at one place compare.

    Attributes:
        values: how many there are.
        differing: how many are not the integer model's.
        largest: difference, in steps.
    """

    values: int
    differing: int
    largest: int


@torch.no_grad()
def compare_site_codes(
    path: Path, integer: nn.Module, batch: object, runtime: Runtime
) -> dict[str, SiteCodes]:
    """Compare the codes of every quantized value of a file with the integer model's.

    Args:
        path: of the file, which has annotations.
        integer: that it was made of.
        batch: inputs of the model, all of which count.
        runtime: that runs the file.

    Returns:
        Name of the tensor of codes -> how they compare: SITE.codes for what is rounded where it
        is made, LAYER.input_codes for what a layer rounds itself.

    Raises:
        ExportError: If the file has no annotations, or names a place that the model has not.
    """
    model = read_back(path)
    weights = {part_of(name, CODES) for name in integer_layers(integer)}
    notes = [
        note
        for note in read_annotations(model.graph)
        if _place(note) not in weights and not _is_part(_place(note))
    ]
    if not notes:
        raise ExportError(f"{path}: no annotation names a quantized value; export with annotations")
    inputs = Inputs.of(batch)
    with _seen(integer) as values:
        inputs.call(integer)
    found = _run_with(model, notes, named_inputs(integer, inputs), runtime)
    constants = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    compared, cut = {}, _cut_behind_pools(model.graph)
    for note in notes:
        place = _place(note)
        if place not in values:
            raise ExportError(f"{path}: {place}: the integer model has no such value")
        scale, zero = (float(constants[name]) for name in (note.scale, note.zero_point))
        steps, given = values[place].double() / scale, found[note.tensor]
        if note.tensor in cut:
            given = given.clamp(*(int(constants[limit]) for limit in cut[note.tensor]))
        given = (given.double() / scale).round() if place != note.tensor else given - zero
        if given.shape != steps.shape:
            shapes = f"{list(given.shape)} in the file, {list(steps.shape)} in the integer model"
            raise ExportError(f"{path}: {note.tensor} has shapes {shapes}")
        apart = (given.long() - steps.round().long()).abs()
        largest = int(apart.max()) if apart.numel() else 0
        compared[place] = SiteCodes(apart.numel(), int((apart > 0).sum()), largest)
    return compared


def _cut_behind_pools(graph: onnx.GraphProto) -> dict[str, Sequence[str]]:
    """Return the limits, by name, of codes that are only clipped once they are pooled."""
    makers, found = {name: node for node in graph.node for name in node.output}, {}
    for node in graph.node:
        chain = [node]
        for kind in ("QuantizeLinear", "MaxPool", "DequantizeLinear"):
            maker = makers.get(chain[-1].input[0]) if chain[-1].input else None
            if maker is None or maker.op_type != kind:
                break
            chain.append(maker)
        else:
            if node.op_type == "Clip":
                found[chain[-1].input[0]] = node.input[1:]
    return found


def _run_with(
    model: onnx.ModelProto, notes: list[Annotation], given: Mapping[str, Tensor], runtime: Runtime
) -> dict[str, Tensor]:
    """Run a file with its quantized values as outputs."""
    types = {item.name: item.data_type for item in model.graph.initializer}
    there = {value.name for value in model.graph.output}
    for note in notes:
        if note.tensor not in there:
            value = onnx.helper.make_tensor_value_info(note.tensor, types[note.zero_point], None)
            model.graph.output.append(value)
    with loadable(model) as whole:
        return run_named(runtime.open(whole), given)


def _place(note: Annotation) -> str:
    """Return the name of the codes that an annotation speaks of, or whose real values it does."""
    return note.tensor.removesuffix(REAL)


def _is_part(tensor: str) -> bool:
    """Tell whether a tensor of a site is a gate, a weight, or the site's codes once more."""
    site = tensor.rpartition(":")[2] if ":" in tensor else ""
    return f"{GATE}." in site or f"{REPEATED}." in site or site.endswith(WEIGHT)


@contextmanager
def _seen(integer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Lend the values on a grid that a pass of the integer model makes, by the names of tensors."""
    values: dict[str, Tensor] = {}

    def keep(name: str, value: object) -> None:
        if isinstance(value, Tensor):
            calls = sum(known.rpartition(".")[0] == name or known == name for known in values)
            values[f"{name}.{calls}" if calls else name] = value

    with ExitStack() as stack:
        for name, layer in integer_layers(integer).items():
            for handle in _watch_layer(name, layer, keep):
                stack.callback(handle.remove)
        for name, relu in integer_relus(integer).items():
            stack.callback(relu.register_forward_hook(_of_relu(name, keep)).remove)
        for module in integer_sites(integer).values():
            if module.spec.output is not None:
                stack.callback(vars(module).pop, "at")
                vars(module)["at"] = _noted(module.at, part_of(str(module.spec.site), CODES), keep)
        yield values


def _watch_layer(name: str, layer: IntegerLayer, keep: Keep) -> Iterator[RemovableHandle]:
    """Keep what a layer rounds: its input, where it has a grid, and its output."""

    def enter(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        given = layer.input_on_grid
        assert given is not None
        keep(part_of(name, INPUT_CODES), apart(lambda: given.values(given.codes(args[0].float()))))

    def leave(module: nn.Module, args: object, output: Tensor) -> None:
        keep(part_of(layer.spec.output_site, CODES), output)

    if layer.spec.input is not None:
        yield layer.register_forward_pre_hook(enter)
    if layer.spec.output_site:
        yield layer.register_forward_hook(leave)


def _of_relu(name: str, keep: Keep) -> Callable[[nn.Module, object, Tensor], None]:
    """Return a hook that keeps what a quantized ReLU puts out, call by call."""
    calls = 0

    def leave(module: nn.Module, args: object, output: Tensor) -> None:
        nonlocal calls
        keep(part_of(str(Site(name, calls)), CODES), output)
        calls += 1

    return leave


def _noted(at: Callable[..., object], name: str, keep: Keep) -> Callable[..., object]:
    """Return what stands at a site, which also keeps what it gives."""

    @wraps(at)
    def noted(*args: object, **kwargs: object) -> object:
        given = at(*args, **kwargs)
        keep(name, given)
        return given

    return noted
