"""A run with a custom estimator, rewritten as its straight-through equivalent.

Its recipe, the weights that it starts from, and what a run that has begun becomes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qtool import assembly, checkpoint, run_folder, runs
from qtool.checkpoint import Checkpoint
from qtool.conversion import to_straight_through
from qtool.data.loaders import Loaders
from qtool.errors import InputError
from qtool.models.vision import rebuild_model
from qtool.quantizers.layers import QUANT_TYPES, set_progress
from qtool.quantizers.weight_map import WeightMap
from qtool.quantizers.weight_quantizer import WeightQuantizer
from qtool.recipe import Recipe
from qtool.recipe_file import load_recipe
from qtool.sections import check, report
from qtool.training.loop import Trainer

ADAPTIVE = ("adamw",)


@dataclass(frozen=True)
class Equivalent:
    """What theory says of a recipe's quantized weights.

    Attributes:
        recipe: with the custom estimator.
        maps: layer -> alpha and M of its weight.
        places: where the settings of weights stand in the recipe, such as overrides.0 -> the same.
        adaptive: the optimizer is of Adam's family.
        outside: why the recipe lies outside the theorem's class, or "".
        notes: what keeps the equivalence from being exact.
    """

    recipe: Recipe
    maps: dict[str, WeightMap]
    places: dict[str, WeightMap]
    adaptive: bool
    outside: str
    notes: list[str]


def equivalent_of(recipe: Recipe, source: str) -> Equivalent:
    """Return what theory says of a recipe.

    Raises:
        InputError: If there are no quantized weights, or some have no straight-through form
            whatever the estimator.
    """
    maps, places, found = {}, {}, []
    with torch.device("meta"):
        network = assembly.make_network_without_data(recipe).model
    for name, module in network.named_modules():
        if type(module) in QUANT_TYPES:
            settings, _, place = recipe.quantization.for_layer(name)
            if settings is not None:
                maps[name] = places[place] = WeightMap(settings)
                if wrong := to_straight_through.why_not(settings):
                    key, why = wrong
                    found.append((f"quantization.{_owner(recipe, place, key)}{key}", why))
    if found:
        raise report(source, list(dict.fromkeys(found)))
    if not maps:
        raise InputError(f"{source}: no weights are quantized; set quantization.weights")
    adaptive = recipe.training.optimizer.name in ADAPTIVE
    judged = dict.fromkeys((m.estimator, m.outside(adaptive=adaptive)) for m in maps.values())
    outside = "; ".join(f"{name}: {why}" if len(judged) > 1 else why for name, why in judged if why)
    notes = _notes(recipe, maps, adaptive)
    return Equivalent(recipe, maps, places, adaptive, outside, notes)


def _owner(recipe: Recipe, place: str, key: str) -> str:
    """Return the section that a weight's key stands in: an override's own, or what it inherits."""
    _, dot, index = place.partition(".")
    own = recipe.quantization.overrides[int(index)].weights if dot else None
    return f"{place}.weights." if own and key in own else "weights."


def _notes(recipe: Recipe, maps: dict[str, WeightMap], adaptive: bool) -> list[str]:
    """Return what keeps the equivalence from being exact."""
    notes = []
    decay = recipe.training.optimizer.params.get("weight_decay", 0.0)
    if decay and not adaptive:
        notes.append(f"weight_decay {decay:g} pulls w and M(w) differently; set it to 0")
    if any(form.settings.dampening is not None for form in maps.values()):
        notes.append("dampening pulls at w itself, which M moves; leave it out")
    roundings = {form.settings.rounding for form in maps.values()} - {"half_to_even"}
    notes += [
        f"{rounding} looks at more of w than its code; choose half_to_even"
        for rounding in sorted(roundings)
    ]
    passing = {form.estimator for form in maps.values() if form.passes_beyond}
    notes += [
        f"{name} passes gradients outside the grid, straight_through does not"
        for name in sorted(passing)
    ]
    return notes


def straight_through_recipe(equivalent: Equivalent, start: Path | None = None) -> Recipe:
    """Return the recipe with straight_through in place of the custom estimator.

    Args:
        equivalent: of the recipe.
        start: file of the weights that it starts from; None leaves that as it is.
    """
    data = equivalent.recipe.as_dict()
    own = equivalent.recipe.quantization.weights
    used = _is_used(data["quantization"], equivalent.places)
    data["quantization"] = to_straight_through.straight_through_section(
        data["quantization"],
        equivalent.places,
        WeightMap(own) if own is not None and used else None,
        equivalent.adaptive,
    )
    if start is not None:
        drawn = {"initialization": "default", "start": "random"}
        data["model"] |= drawn | {"weights": str(start)}
    return check(Recipe, data, "the straight-through recipe")


def _is_used(section: dict[str, Any], places: Iterable[str]) -> bool:
    """Tell whether a layer takes the section's own weights, or an override that changes none."""
    overrides = section.get("overrides", [])
    own = {f"overrides.{k}" for k, place in enumerate(overrides) if place.get("weights")}
    return any(place not in own for place in places)


def write_start(equivalent: Equivalent, mapped: Recipe, folder: Path) -> None:
    """Begin the run folder of a straight-through recipe, with M(w0) in initial.safetensors."""
    path = folder / run_folder.INITIAL
    runs.open_run(mapped, folder, resume=True)
    if path.is_file():
        return
    recipe = equivalent.recipe
    network = assembly.make_network(recipe, assembly.make_data(recipe, torch.device("cpu"))).model
    state = {
        name: value.detach().clone().contiguous() for name, value in network.state_dict().items()
    }
    for name, form in equivalent.maps.items():
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = form.move(weight, WeightQuantizer(form.settings, weight).scale)
    runs.keep_recipe(mapped, folder, "the resolved recipe of this run")
    run_folder.write_atomically(path, lambda temporary: save_file(state, temporary))


def convert_run(source: Path, output: Path | None, device: torch.device) -> dict[str, Any]:
    """Write the straight-through form of a run into a folder of its own; return convert.json.

    Raises:
        InputError: If there is none, or the folder is taken.
        ConversionError: If the result gives other outputs, which is a bug.
    """
    if not run_folder.is_run_folder(source):
        raise InputError(f"{source}: not a run folder; --to straight_through takes a run")
    recipe = load_recipe(source / run_folder.RECIPE)
    equivalent = equivalent_of(recipe, str(source))
    if equivalent.outside:
        raise InputError(f"{source}: has no straight-through form: {equivalent.outside}")
    wanted = straight_through_recipe(equivalent)
    folder = output or source.with_name(f"{source.name}-straight-through")
    runs.open_run(wanted, folder, resume=True)
    if (folder / run_folder.CHECKPOINT).is_file():
        raise InputError(f"{folder}: holds a run already; choose another --output")
    path = source / run_folder.CHECKPOINT
    kept = checkpoint.load(path, device)
    loaders = assembly.make_data(recipe, device)
    new, old = (_trainer(r, kept, path, loaders, device) for r in (wanted, recipe))
    # last of what draws random numbers: the new run goes on with the old one's
    with run_folder.intact(path, runs.NOT_OF_THIS_RUN):
        kept.restore(old.model, old.optimizer)
    set_progress(old.model, len(kept.history) / recipe.training.epochs)
    layers = to_straight_through.carry_over(
        (old.model, old.optimizer), (new.model, new.optimizer), equivalent.maps, equivalent.adaptive
    )
    state = checkpoint.take(new.model, new.optimizer, kept.history, kept.architecture)
    gap = to_straight_through.prove_equal(old.model, new.model, assembly.first_images(loaders))
    runs.keep_recipe(wanted, folder, f"the straight-through form of {source}")
    runs.write_environment(wanted, folder, device)
    run_folder.write_metrics(folder, kept.history)
    checkpoint.save(state, folder / run_folder.CHECKPOINT)
    done, epochs = len(kept.history), recipe.training.epochs
    runs.summarize(folder, "finished" if done == epochs else "running", new.model, kept.history)
    result = {
        "to": "straight_through",
        "source": str(source),
        "run": str(folder),
        "optimizer": recipe.training.optimizer.name,
        "epochs_done": done,
        "epochs": epochs,
        "max_abs_difference": gap,
        "layers": layers,
        "notes": equivalent.notes,
    }
    run_folder.write_json(folder / run_folder.CONVERT, result)
    return result


def _trainer(
    recipe: Recipe, kept: Checkpoint, path: Path, loaders: Loaders, device: torch.device
) -> Trainer:
    """Return a trainer at the beginning, of the network that a checkpoint is of."""
    with run_folder.intact(path, runs.NOT_OF_THIS_RUN):
        network = rebuild_model(recipe.model.name, kept.architecture)
    model = assembly.prepare_network(recipe, network, assembly.first_images(loaders))
    return assembly.make_trainer(recipe, model, loaders, device)
