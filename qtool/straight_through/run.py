"""A run with a custom estimator, rewritten as its straight-through equivalent.

Its recipe, the weights that it starts from, and what a run that has begun becomes.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from qtool.data.loaders import Loaders
from qtool.errors import InputError
from qtool.files.reading import intact
from qtool.files.whole import write_atomically, write_json
from qtool.models.vision import rebuild_model
from qtool.quantizers.layers import set_progress
from qtool.quantizers.weights import WeightQuantizer
from qtool.recipe.file import load_recipe
from qtool.recipe.recipe import Recipe
from qtool.runs import build, checkpoint
from qtool.runs.checkpoint import Checkpoint
from qtool.runs.folder import CHECKPOINT, CONVERT, INITIAL, RECIPE, is_run_folder, write_metrics
from qtool.runs.run import NOT_OF_THIS_RUN, keep_recipe, open_run, summarize, write_environment
from qtool.straight_through import state as states
from qtool.straight_through.recipe import Equivalent, equivalent_of, straight_through_recipe
from qtool.training.loop import Trainer


def write_start(equivalent: Equivalent, mapped: Recipe, folder: Path) -> None:
    """Begin the run folder of a straight-through recipe, with M(w0) in initial.safetensors."""
    path = folder / INITIAL
    open_run(mapped, folder, resume=True)
    if path.is_file():
        return
    recipe = equivalent.recipe
    network = build.make_network(recipe, build.make_data(recipe, torch.device("cpu"))).model
    state = {
        name: value.detach().clone().contiguous() for name, value in network.state_dict().items()
    }
    for name, form in equivalent.maps.items():
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = form.move(weight, WeightQuantizer(form.settings, weight).scale)
    keep_recipe(mapped, folder, "the resolved recipe of this run")
    write_atomically(path, lambda temporary: save_file(state, temporary))


def convert_run(source: Path, output: Path | None, device: torch.device) -> dict[str, Any]:
    """Write the straight-through form of a run into a folder of its own; return convert.json.

    Raises:
        InputError: If there is none, or the folder is taken.
        ConversionError: If the result gives other outputs, which is a bug.
    """
    if not is_run_folder(source):
        raise InputError(f"{source}: not a run folder; --to straight_through takes a run")
    recipe = load_recipe(source / RECIPE)
    equivalent = equivalent_of(recipe, str(source))
    if equivalent.outside:
        raise InputError(f"{source}: has no straight-through form: {equivalent.outside}")
    wanted = straight_through_recipe(equivalent)
    folder = output or source.with_name(f"{source.name}-straight-through")
    open_run(wanted, folder, resume=True)
    if (folder / CHECKPOINT).is_file():
        raise InputError(f"{folder}: holds a run already; choose another --output")
    path = source / CHECKPOINT
    kept = checkpoint.load(path, device)
    loaders = build.make_data(recipe, device)
    new, old = (_trainer(r, kept, path, loaders, device) for r in (wanted, recipe))
    # last of what draws random numbers: the new run goes on with the old one's
    with intact(path, NOT_OF_THIS_RUN):
        kept.restore(old.model, old.optimizer)
    set_progress(old.model, len(kept.history) / recipe.training.epochs)
    layers = states.carry_over(
        (old.model, old.optimizer), (new.model, new.optimizer), equivalent.maps, equivalent.adaptive
    )
    state = checkpoint.take(new.model, new.optimizer, kept.history, kept.architecture)
    gap = states.prove_equal(old.model, new.model, build.first_images(loaders))
    keep_recipe(wanted, folder, f"the straight-through form of {source}")
    write_environment(wanted, folder, device)
    write_metrics(folder, kept.history)
    checkpoint.save(state, folder / CHECKPOINT)
    done, epochs = len(kept.history), recipe.training.epochs
    summarize(folder, "finished" if done == epochs else "running", new.model, kept.history)
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
    write_json(folder / CONVERT, result)
    return result


def _trainer(
    recipe: Recipe, kept: Checkpoint, path: Path, loaders: Loaders, device: torch.device
) -> Trainer:
    """Return a trainer at the beginning, of the network that a checkpoint is of."""
    with intact(path, NOT_OF_THIS_RUN):
        network = rebuild_model(recipe.model.name, kept.architecture)
    model = build.prepare_network(recipe, network, build.first_images(loaders))
    return build.make_trainer(recipe, model, loaders, device)
