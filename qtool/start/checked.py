"""What a recipe will take, before it is trained: its plan, operations, size, memory and time."""

import sys
from pathlib import Path

import torch
from torch import nn

from qtool.bits.costs import FLOAT_BITS, macs_of
from qtool.console import say_nothing
from qtool.data.loaders import Loaders
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.plan import mean_weight_bits, plan
from qtool.recipe.recipe import Recipe
from qtool.reports.checks import Check, CheckedLayer
from qtool.reports.inspections import PlanRow
from qtool.runs.access import Access
from qtool.runs.built import build
from qtool.runs.built.timing import time_steps
from qtool.runs.machine import device_name, pick_device

STEPS = 8  # that are timed
PER_CHANNEL = 8  # bytes: a scale and a bias


def check(
    recipe_path: Path,
    *,
    assignments: list[str] | None = None,
    device: str = "auto",
    data_root: Path | None = None,
    run_code: bool = False,
) -> Check:
    """Recipe -> data, model, a few steps -> plan, operations, size, memory, time; keeps nothing.

    Raises:
        RecipeError: If the recipe is wrong, or its network does not take such images.
        DataError: If its data or weights are missing or malformed.
        ModelError: If the network cannot be quantized.
    """
    place = pick_device(device)
    access = Access.of(data_root, assignments, run_code=run_code).to_recipe(recipe_path)
    recipe = build.load_checked(recipe_path, access=access)
    return what_it_takes(recipe, str(recipe_path), place, access.taken(recipe))


def what_it_takes(recipe: Recipe, source: str, device: torch.device, access: Access) -> Check:
    """Build all that a recipe names, take a few steps, and return what the whole will take.

    Args:
        recipe: checked already.
        source: of the recipe.
        device: to train on.
        access: what it may reach.

    Raises:
        DataError: If its data or weights are missing or malformed.
        RecipeError: If its network does not take such images.
        ModelError: If the network cannot be quantized.
    """
    data = build.make_data(recipe, device, access)
    built = build.make_network(recipe, data)
    network = built.model
    parameters = sum(p.numel() for p in network.parameters())
    float_bytes = sum(t.nbytes for t in network.state_dict().values() if t.is_floating_point())
    image = data.first_images[:1].cpu()
    macs = macs_of(network, image)
    model = build.prepare_network(recipe.without_budget(), network, data.first_images)
    with say_nothing(when=True):
        build.calibrate_on(model, recipe, data)
    rows, bits = plan(model), mean_weight_bits(model)
    layers = [_layer(row, macs.get(row.name, 0), _widths(model, row.name)) for row in rows]
    quantized, packed = _packed(model, float_bytes)
    inside = sum(layer.macs for layer in layers)
    total = macs[""]
    _forget_peak(device)
    timing = time_steps(model, recipe, data, device, architecture=built.architecture, steps=STEPS)
    return Check(
        recipe=source,
        model=recipe.model.name,
        weights=recipe.model.weights,
        data=recipe.data.name,
        classes=data.classes,
        channels=data.channels,
        image_size=data.image_size,
        training_images=data.train.samples,
        validation_images=data.validation.samples,
        parameters=parameters,
        quantized_weights=quantized,
        weight_bits_mean=bits,
        layers=layers,
        macs=total,
        bit_operations=sum(la.bit_operations for la in layers) + (total - inside) * FLOAT_BITS**2,
        float_bit_operations=total * FLOAT_BITS**2,
        float_bytes=float_bytes,
        packed_bytes=packed,
        device=f"{device} ({device_name(device)})",
        batch_size=min(recipe.data.batch_size, len(data.first_images)),
        steps=len(data.train),
        epochs=recipe.training.epochs,
        step_seconds=timing.step,
        epoch_seconds=timing.epoch,
        seconds=timing.total,
        peak_memory_bytes=_peak(device),
        notes=_notes(recipe, data),
    )


def _widths(model: nn.Module, name: str) -> tuple[int, int]:
    """Return the bits of a layer's weights and of its input."""
    layer = quant_layers(model).get(name)
    if layer is None:
        return FLOAT_BITS, FLOAT_BITS
    sides = layer.weight_quantizer, layer.quantizer_of_input
    weights, inputs = (FLOAT_BITS if side is None else side.bits for side in sides)
    return weights, inputs


def _layer(row: PlanRow, macs: int, widths: tuple[int, int]) -> CheckedLayer:
    weights, inputs = widths
    return CheckedLayer(
        layer=row.name,
        weight="x".join(map(str, row.shape)),
        weights=row.weights,
        input=row.activations,
        macs=macs,
        bit_operations=macs * weights * inputs,
        why=row.why,
    )


def _packed(model: nn.Module, float_bytes: int) -> tuple[int, int]:
    """Return how many weights are quantized, and what a network takes with their codes packed."""
    quantized, packed = 0, float_bytes
    for layer in quant_layers(model).values():
        if layer.weight_quantizer is not None:
            count = layer.weight.numel()
            codes = -(-count * layer.weight_quantizer.bits // 8)
            packed += codes + PER_CHANNEL * len(layer.weight) - 4 * count
            quantized += count
    return quantized, packed


def _forget_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> int | None:
    """Return the most memory that was taken: of a CUDA device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return taken if sys.platform == "darwin" else taken * 1024


def _notes(recipe: Recipe, data: Loaders) -> list[str]:
    """Return what should be known before training."""
    notes = [*recipe.quantization.notes()]
    if recipe.quantization.budget is not None:
        notes.append("widths are those before quantization.budget chooses them")
    if recipe.data.batch_size > data.train.samples:
        why = f"all {data.train.samples:,} training images are one batch"
        notes.append(f"data.batch_size is {recipe.data.batch_size:,}: {why}")
    return notes
