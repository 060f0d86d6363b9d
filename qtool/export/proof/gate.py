"""The check of a file: the runtime's codes and logits against the integer model's."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from qtool.errors import ExportError
from qtool.export.proof.constants import codes_in
from qtool.export.targets.target import Array, Runtime, Session
from qtool.export.writing.saved import read_back
from qtool.integer.layers import IntegerLayer, integer_layers
from qtool.integer.relu import IntegerReLU, integer_relus
from qtool.numerics.on_grid import OnGrid
from qtool.numerics.roundings import ROUNDINGS
from qtool.numerics.saturation import MIDDLE


def run(session: Session, images: Tensor) -> Tensor:
    """Return the first output for a batch of images, as a tensor; a fixed batch is filled up."""
    return next(iter(run_named(session, {session.inputs[0]: images}).values()))


def run_named(session: Session, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return every output by its name, for one batch of inputs by theirs.

    A fixed batch is filled up, in every tensor whose first dimension is the batch.
    """
    arrays = {name: np.ascontiguousarray(t.detach().cpu().numpy()) for name, t in given.items()}
    rows = next((len(array) for array in arrays.values() if array.ndim), 1)
    size = session.batch or rows
    found: dict[str, list[Tensor]] = {}
    for start in range(0, rows, size):
        taken = min(size, rows - start)
        full = {
            name: _filled(array[start : start + size], size)
            if array.ndim and len(array) == rows
            else array
            for name, array in arrays.items()
        }
        for name, value in session.run(full).items():
            part = torch.from_numpy(value)
            if part.ndim and len(part) % size == 0:  # windows: an image has several rows
                part = part[: len(part) * taken // size]
            found.setdefault(name, []).append(part)
    return {name: torch.cat(v) if v[0].ndim else v[0] for name, v in found.items()}


def _filled(rows: Array, size: int) -> Array:
    """Return rows with the last one repeated, so that there are `size`."""
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows


def stored_codes(path: Path, names: list[str], runtime: Runtime) -> dict[str, Array]:
    """Return the weight codes that a file holds, as the runtime itself unpacks them."""
    return codes_in(read_back(path), names, runtime)


def check_codes(
    path: Path, integer: nn.Module, tensors: Mapping[str, str], runtime: Runtime
) -> int:
    """Compare every code in the file with the integer model's; return how many were compared.

    Args:
        path: of the file.
        integer: that it was made of.
        tensors: layer -> the tensor of its codes, "" where the file has none of its own.
        runtime: unpacks them.

    Raises:
        ExportError: If one differs.
    """
    modules = integer_layers(integer)
    names = [tensor for tensor in tensors.values() if tensor]
    found = stored_codes(path, names, runtime) if names else {}
    compared = 0
    for layer, tensor in tensors.items():
        if tensor:
            codes, given = modules[layer].codes_of_file.cpu().numpy(), found[tensor]
            zero = MIDDLE if given.dtype == np.uint8 else 0
            if not np.array_equal(given, codes.astype(np.int16) + zero):
                raise ExportError(f"{path}: the codes of {layer} differ from the model's")
            compared += codes.size
    return compared


def hint_for(may_saturate: Sequence[str]) -> str:
    """Return what may be behind a disagreement, "" where nothing is known.

    Args:
        may_saturate: the layers that may, on processors without VNNI.
    """
    if not may_saturate:
        return ""
    return (
        f"; on processors without VNNI, int8 kernels may saturate in {', '.join(may_saturate)}: "
        f"convert with --no-saturation, or train with quantization.weights.saturation: avoid"
    )


def shifted_share(integer: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float | None:
    """Return the share of input values whose code changes where a shift stands in for ceil.

    None where nothing has rounding ceil.
    """
    layers = [m for m in integer_layers(integer).values() if m.spec.input_rounding == "ceil"]
    relus = [
        m
        for m in integer_relus(integer).values()
        if any(c.rounding == "ceil" for c in m.spec.calls)
    ]
    counted = {"changed": 0, "values": 0}

    def count(x: Tensor, exact: OnGrid) -> None:
        nearest = OnGrid(exact.grid, exact.scale, exact.zero_point)
        codes, shifted = exact.codes(x.float()), nearest.codes(x.float() + exact.step / 2)
        counted["changed"] += int((shifted != codes).sum())
        counted["values"] += codes.numel()

    def look(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, IntegerLayer)
        given = layer.input_on_grid
        assert given is not None
        count(args[0], given)

    def look_at_relu(relu: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(relu, IntegerReLU)
        output = relu.on_grid(relu.calls)
        if output is not None and output.rounding is ROUNDINGS["ceil"]:
            count(args[0].clamp_min(0), output)

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    handles += [relu.register_forward_pre_hook(look_at_relu) for relu in relus]
    try:
        for images, _ in batches:
            integer(images)
    finally:
        for handle in handles:
            handle.remove()
    return counted["changed"] / counted["values"] if handles else None
