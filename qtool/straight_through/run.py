"""A run folder with a custom estimator, rewritten as its straight-through equivalent's."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from qtool.console import warn
from qtool.errors import InputError
from qtool.files.lock import only_writer
from qtool.files.whole import write_atomically
from qtool.quantizers.control import set_progress
from qtool.quantizers.weights import WeightQuantizer
from qtool.recipe.recipe import Recipe
from qtool.reports.results import StraightThrough
from qtool.runs.access import OWN, Access
from qtool.runs.built import build
from qtool.runs.kept import checkpoint
from qtool.runs.kept.answers import keep_answers
from qtool.runs.kept.begin import keep_recipe, open_run, summarize, write_environment
from qtool.runs.kept.folder import RunFolder
from qtool.runs.kept.weights import write_weights
from qtool.runs.run import Run
from qtool.stopping import held_back
from qtool.straight_through import state as states
from qtool.straight_through.recipe import Equivalent, equivalent_of, straight_through_recipe
from qtool.tensor_files import read_safetensors

CPU = torch.device("cpu")


def write_start(
    equivalent: Equivalent, mapped: Recipe, folder: RunFolder, access: Access = OWN
) -> None:
    """Begin the run folder of a straight-through recipe, with M(w0) in initial.safetensors.

    Where that file is damaged, and nothing is trained from it yet, it is made anew.
    """
    open_run(mapped, folder, resume=True)
    if folder.initial.is_file() and (folder.checkpoint.is_file() or _can_be_read(folder.initial)):
        return
    recipe = equivalent.recipe
    network = build.make_network(recipe, build.make_data(recipe, CPU, access)).model
    state = {
        name: value.detach().clone().contiguous() for name, value in network.state_dict().items()
    }
    for name, weight_map in equivalent.maps.items():
        weight = state[f"{name}.weight"]
        scale = WeightQuantizer(weight_map.settings, weight).used_scale
        state[f"{name}.weight"] = weight_map.map(weight, scale)
    keep_recipe(mapped, folder, "the resolved recipe of this run")
    write_atomically(folder.initial, lambda temporary: save_file(state, temporary))


def _can_be_read(path: Path) -> bool:
    """Tell whether a file of weights is whole; say where it is not."""
    try:
        _ = read_safetensors(path)
    except (OSError, ValueError, SafetensorError):
        warn(f"{path}: damaged; made anew")
        return False
    return True


def convert_run(
    source: Path, output: Path | None, device: torch.device, access: Access = OWN
) -> StraightThrough:
    """Write the straight-through form of a run into a folder of its own; return convert.json.

    The user's own estimators run: the map is made of them.

    Raises:
        InputError: If there is none, or the folder is taken.
        ConversionError: If the result gives other outputs, which is a bug.
    """
    if not RunFolder(source).holds_run():
        raise InputError(f"{source}: not a run folder; --to straight_through takes a run")
    code = access.code_of(RunFolder(source).recipe)
    run = Run.open(source, device, access, code=code)
    equivalent = equivalent_of(run.recipe, str(source))
    if equivalent.outside:
        raise InputError(f"{source}: has no straight-through form: {equivalent.outside}")
    wanted = straight_through_recipe(equivalent)
    place = output or source.with_name(f"{source.name}-straight-through")
    folder = RunFolder(place, option="--output")
    open_run(wanted, folder, resume=True)
    with only_writer(folder.path):
        open_run(wanted, folder, resume=True)  # as it is once nobody else writes there
        return _converted(run, equivalent, wanted, folder)


def _converted(
    run: Run, equivalent: Equivalent, wanted: Recipe, folder: RunFolder
) -> StraightThrough:
    """Write the straight-through form of a run into a folder that only this process writes in.

    Raises:
        InputError: If the folder holds a run.
        ConversionError: If the result gives other outputs, which is a bug.
    """
    source, device = run.folder.path, run.device
    if folder.checkpoint.is_file():
        raise InputError(f"{folder}: holds a run already; choose another --output")
    kept = run.checkpoint
    new, old = run.trainer(wanted), run.trainer()
    # last of what draws random numbers: the new run goes on with the old one's
    run.restore(old)
    done, epochs = len(kept.history), run.recipe.training.epochs
    set_progress(old.model, run.progress)
    layers = states.carry_over(
        (old.model, old.optimizer),
        (new.model, new.optimizer),
        equivalent.maps,
        adaptive=equivalent.adaptive,
    )
    state = checkpoint.take(new.model, new.optimizer, kept.history, kept.architecture, kept.inside)
    gap = states.prove_equal(old.model, new.model, run.data.first_images)
    result = StraightThrough(
        to="straight_through",
        source=str(source),
        run=str(folder),
        optimizer=run.recipe.training.optimizer.name,
        epochs_done=done,
        epochs=epochs,
        max_abs_difference=gap,
        layers=layers,
        notes=equivalent.notes,
    )
    with held_back():  # the folder is a run only as a whole
        keep_recipe(wanted, folder, f"the straight-through form of {source}")
        write_environment(wanted, folder, device, run.data)
        folder.write_metrics(kept.history)
        made_of = checkpoint.save(state, folder.checkpoint)
        finished = done == epochs
        if finished:
            write_weights(new.model, wanted, kept.architecture, folder, made_of)
            keep_answers(new.model, run.data, folder, None)
        summarize(folder, "finished" if finished else "running", new.model, kept.history)
        result.write(folder.convert)
    return result
