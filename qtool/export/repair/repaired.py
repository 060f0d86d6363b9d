"""A file that other tools rewrote in, the same with its annotations and packed weights out.

What is written is proven first: on random inputs, ONNX Runtime must compute the very same numbers
of it as of the file that was given.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from qtool.errors import ExportError, InputError
from qtool.export.proof.stored_weights import StoredWeight, stored_weights
from qtool.export.repair.annotations import annotations_of
from qtool.export.repair.packing import pack_again
from qtool.export.targets.target import TARGETS, Array, Runtime
from qtool.export.writing.annotation import read_annotations, read_metadata, write_annotations
from qtool.export.writing.layer_metadata import LayerMetadata, read_layers
from qtool.export.writing.saved import is_large
from qtool.files.reading import intact
from qtool.integer.layers import LayerSpec

PROVEN_IN = "onnxruntime"  # the target whose runtime takes every ONNX file
SPREADS = (1.0, 10.0)  # of random inputs: some codes at the ends of their grids, and most
BATCH, SIZE = 2, 32  # of dimensions that are open


def repaired(model: onnx.ModelProto, path: Path) -> tuple[onnx.ModelProto, list[str]]:
    """Return a file with annotations, and weights at their true width again, and what was done.

    Args:
        model: the file, which stays as it is.
        path: of it, for messages.

    Raises:
        InputError: If qtool wrote nothing into it to repair it by.
        ExportError: If the result does not compute the same.
    """
    with intact(path, "what qtool wrote into it is damaged"):
        layers, said = read_layers(model), read_metadata(model)
    if not layers or "layers" not in said:
        raise InputError(
            f"{path}: has no metadata of qtool's layers (qtool.layer.NAME), which a repair goes "
            f"by; export it again"
        )
    if is_large(model):
        raise InputError(
            f"{path}: its tensors take more than 2 GiB, and a repair is proven in memory; export "
            f"it again"
        )
    target = TARGETS[PROVEN_IN]()
    runtime = target.runtime
    specs = {layer["name"]: LayerSpec.model_validate(layer) for layer in said["layers"]}
    packed = {layer["name"]: layer["packed_bytes"] for layer in said["layers"]}
    weights = stored_weights(model, layers, runtime)
    undone = {name: w for name, w in weights.items() if is_undone(w, packed.get(name))}
    made = onnx.ModelProto()
    packs = pack_again(model, undone, layers, specs, target, among=weights) if undone else model
    made.CopyFrom(packs)
    done = [_said(name, weight, packed[name]) for name, weight in undone.items()]
    done += _annotate(made, layers, runtime)
    if undone:
        del made.graph.value_info[:]  # what tools wrote of shapes, which every runtime infers
    _prove(model, made, path, runtime)
    return made, done


def is_undone(weight: StoredWeight, packed_bytes: int | None) -> bool:
    """Tell whether a weight takes more than it did when it was written."""
    return packed_bytes is not None and weight.nbytes > packed_bytes


def _said(name: str, weight: StoredWeight, packed_bytes: int) -> str:
    kinds = {"float": "float weights", "integers": "plain codes", "unpacked": "half unpacked codes"}
    kind = kinds[weight.form]
    return f"{name}: {weight.nbytes:,} bytes of {kind} packed into {packed_bytes:,}"


def _annotate(
    model: onnx.ModelProto, layers: Mapping[str, LayerMetadata], runtime: Runtime
) -> Iterator[str]:
    """Write all annotations into a model; yield what is other than it was."""
    old = {note.tensor: note for note in read_annotations(model.graph)}
    new = {note.tensor: note for note in annotations_of(model, layers, runtime)}
    write_annotations(model.graph, list(new.values()))
    counts = {
        "restored": len(new.keys() - old.keys()),
        "corrected": sum(old[name] != new[name] for name in new.keys() & old.keys()),
        "of no such tensor removed": len(old.keys() - new.keys()),
    }
    yield from (
        f"{number} annotation{'s' if number > 1 else ''} {what}"
        for what, number in counts.items()
        if number
    )


def _prove(given: onnx.ModelProto, made: onnx.ModelProto, path: Path, runtime: Runtime) -> None:
    """Check that two models compute the same numbers on random inputs.

    Raises:
        ExportError: If they do not, or one cannot be run.
    """
    before, after = (runtime.open(one.SerializeToString()) for one in (given, made))
    for seed, spread in enumerate(SPREADS):
        inputs = _random_inputs(given, np.random.default_rng(seed), spread)
        try:
            expected, found = before.run(inputs), after.run(inputs)
        except Exception as error:
            words = str(error).strip().splitlines()
            reason = words[0] if words else repr(error)
            raise ExportError(
                f"{path}: the repair cannot be proven in {runtime.title}: {reason}; nothing was "
                f"written"
            ) from error
        for name, value in expected.items():
            if not np.array_equal(value, found[name], equal_nan=value.dtype.kind == "f"):
                raise ExportError(
                    f"{path}: the repaired file computes another {name} than this one; nothing "
                    f"was written"
                )


def _random_inputs(
    model: onnx.ModelProto, random: np.random.Generator, spread: float
) -> dict[str, Array]:
    """Return inputs of a model, each of its type; open dimensions get a size."""
    constants = {item.name for item in model.graph.initializer}
    made: dict[str, Array] = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        kind = value.type.tensor_type
        sizes = [
            dim.dim_value or (BATCH if place == 0 else SIZE)
            for place, dim in enumerate(kind.shape.dim)
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if kind.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
            made[value.name] = (spread * random.standard_normal(sizes)).astype(dtype)
        else:
            highest = 256 if kind.elem_type == TensorProto.UINT8 else 2
            made[value.name] = random.integers(0, highest, sizes).astype(dtype)
    return made
