"""Runs: opened, started or resumed, loaded again, and summed up."""

from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from torch import Tensor, nn

from qtool import assembly, checkpoint, run_folder
from qtool.console import say
from qtool.data.loaders import Loaders
from qtool.errors import InputError
from qtool.evaluation import evaluate, logits_of
from qtool.export import parity
from qtool.export.runtime import INTEGER_KERNELS, RUNTIME_VERSION, optimized_graph
from qtool.integer.file import load_integer, read_about
from qtool.integer.layers import converted_state
from qtool.models.vision import rebuild_model
from qtool.quantizers.layers import set_progress
from qtool.quantizers.prepare import mean_weight_bits
from qtool.quantizers.user_estimators import source_hashes, source_of, used_by
from qtool.recipe import Recipe
from qtool.recipe_file import load_recipe, read_recipe_file, write_recipe
from qtool.sections import check
from qtool.training.loop import Trainer

SUMMARIZED = ("validation_accuracy", "validation_loss", "train_accuracy", "train_loss")
ALSO_SHOWN = ("run", "epochs", "seconds", "parameters", "weight_bits_mean")
NOT_OF_THIS_RUN = "damaged, or of another run"
Architecture = dict[str, Any]  # what rebuild_model needs


def open_run(recipe: Recipe, folder: Path, *, resume: bool) -> None:
    """Check that a run can be in the folder: that it is free, or holds this very run.

    Nothing is made yet, so that a mistake found later leaves no empty folder behind.

    Raises:
        InputError: If it holds anything else, or `resume` is missing.
    """
    run_folder.refuse_unless_makeable(folder)
    if run_folder.is_free(folder):
        return
    if not run_folder.is_run_folder(folder):
        raise InputError(f"{folder}: not empty, and not a run; choose another --run-dir")
    path = folder / run_folder.RECIPE
    kept = check(Recipe, read_recipe_file(path), str(path))  # its estimators stay unloaded
    if kept.identity() != recipe.identity():
        different = ", ".join(_differences(kept.identity(), recipe.identity()))
        raise InputError(f"{folder}: holds a different run ({different}); choose another --run-dir")
    _refuse_changed_sources(recipe, folder)
    if not resume:
        raise InputError(
            f"{folder}: holds this run already; add --resume to go on with it or to see its "
            f"summary, or choose another --run-dir"
        )


def write_environment(recipe: Recipe, folder: Path, device: torch.device) -> None:
    """Write what a run's numbers depend on beside its recipe."""
    hashes = source_hashes(recipe.as_dict()["quantization"])
    found = assembly.environment(device) | {"estimator_sources": hashes}
    run_folder.write_json(folder / run_folder.ENVIRONMENT, found)


def keep_recipe(recipe: Recipe, folder: Path, comment: str) -> None:
    """Write the resolved recipe into a folder, and the user's own estimators beside it."""
    for _, name, _ in used_by(recipe.as_dict()["quantization"]):
        source = source_of(name)
        if source.parent != folder.resolve():
            run_folder.write_atomically(folder / source.name, partial(copyfile, source))
    write_recipe(recipe, folder / run_folder.RECIPE, comment)


def _refuse_changed_sources(recipe: Recipe, folder: Path) -> None:
    """Check that the user's own estimators are those that a run began with.

    Raises:
        InputError: If a file has changed since the first epoch was done.
    """
    path = folder / run_folder.ENVIRONMENT
    if not path.is_file() or not (folder / run_folder.CHECKPOINT).is_file():
        return
    kept = run_folder.read_json(path).get("estimator_sources")
    for file, digest in source_hashes(recipe.as_dict()["quantization"]).items():
        if not isinstance(kept, dict) or kept.get(file) != digest:
            raise InputError(
                f"{folder}: holds a run with another {file}, of which it keeps a copy; choose "
                f"another --run-dir for what the file says now"
            )


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Return the dotted keys whose values differ, each with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        inner = (_differences(old.get(k), new.get(k), f"{place}.{k}".strip(".")) for k in keys)
        return [line for lines in inner for line in lines]
    return [] if old == new else [f"{place}: {old} there, {new} here"]


def start_or_resume(
    recipe: Recipe, loaders: Loaders, folder: Path, device: torch.device
) -> tuple[Trainer, Architecture]:
    """Return the trainer, at the beginning or at the checkpoint, and the network's architecture."""
    path, example = folder / run_folder.CHECKPOINT, assembly.first_images(loaders)
    if path.is_file():
        state = checkpoint.load(path, device)
        with run_folder.intact(path, NOT_OF_THIS_RUN):
            network = rebuild_model(recipe.model.name, state.architecture)
        model = assembly.prepare_network(recipe, network, example)
        trainer = assembly.make_trainer(recipe, model, loaders, device)
        with run_folder.intact(path, NOT_OF_THIS_RUN):
            state.restore(trainer.model, trainer.optimizer)
        trainer.history = state.history
        say(f"going on after epoch {len(state.history)}")
        return trainer, state.architecture
    built = assembly.make_network(recipe, loaders)
    model = assembly.prepare_network(recipe, built.model, example).train()
    assembly.calibrate_on(model, recipe, loaders)
    return assembly.make_trainer(recipe, model, loaders, device), built.architecture


def finished_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a run that is finished, else None."""
    path = folder / run_folder.SUMMARY
    if not path.is_file():
        return None
    summary = run_folder.read_json(path)
    if summary.get("status") != "finished":
        return None
    if missing := [key for key in (*SUMMARIZED, *ALSO_SHOWN) if key not in summary]:
        raise InputError(f"{path}: damaged, it has no {', '.join(missing)}")
    return summary


def summarize(
    folder: Path, status: str, model: nn.Module, history: list[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """Write summary.json and return it."""
    last = history[-1] if history else {}
    summary = {
        "status": status,
        "run": str(folder),
        "epochs": len(history),
        "seconds": round(sum(line["seconds"] for line in history), 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weight_bits_mean": round(mean_weight_bits(model), 4),
        **{key: last.get(key) for key in SUMMARIZED},
        **more,
    }
    run_folder.write_json(folder / run_folder.SUMMARY, summary)
    return summary


def load_run(folder: Path, device: torch.device) -> tuple[Recipe, nn.Module, Loaders, Architecture]:
    """Return a run's recipe, its trained model, its data and its architecture.

    Raises:
        InputError: If the folder holds no run, or its checkpoint cannot be read.
    """
    run_folder.refuse_unless_run(folder)
    recipe = load_recipe(folder / run_folder.RECIPE)
    state = checkpoint.load(folder / run_folder.CHECKPOINT, device)
    loaders = assembly.make_data(recipe, device)
    path = folder / run_folder.CHECKPOINT
    with run_folder.intact(path, NOT_OF_THIS_RUN):
        network = rebuild_model(recipe.model.name, state.architecture)
    model = assembly.prepare_network(recipe, network, assembly.first_images(loaders))
    with run_folder.intact(path, NOT_OF_THIS_RUN):
        model.load_state_dict(state.model)
    done = len(state.history)
    if done < recipe.training.epochs:
        say(f"{folder}: trained for {done} of {recipe.training.epochs} epochs so far")
    set_progress(model, done / recipe.training.epochs)
    return recipe, model.eval(), loaders, state.architecture


def calibrated(
    recipe: Recipe, device: torch.device
) -> tuple[nn.Module, Loaders, Architecture, float | None]:
    """Return a recipe's network with its given weights, quantized without training.

    The last item is the accuracy of the float network, None where labels are no classes.
    """
    loaders = assembly.make_data(recipe, device)
    if recipe.model.weights == "none":
        say("note: model.weights is none, so random weights are quantized")
    built = assembly.make_network(recipe, loaders)
    example = assembly.first_images(loaders)
    network = built.model.eval().to(device)
    score = evaluate(network, loaders.validation.batches(0), assembly.make_loss(recipe))
    model = assembly.prepare_network(recipe, network, example)
    assembly.calibrate_on(model, recipe, loaders)
    set_progress(model, 1.0)
    return model, loaders, built.architecture, score.accuracy


def open_integer(path: Path) -> tuple[Recipe, nn.Module, Architecture]:
    """Return the recipe, the integer model, on the CPU, and the architecture of a file.

    Raises:
        InputError: If the file is missing, damaged, or not an integer model.
    """
    about, _ = read_about(path)
    with run_folder.intact(path, "its metadata is damaged"):
        recipe = check(Recipe, about["recipe"], f"{path}, its recipe")
        network = rebuild_model(recipe.model.name, about["architecture"])
        return recipe, load_integer(path, network), about["architecture"]


def folder_for_untrained(recipe: Recipe, source: Path) -> Path:
    """Return the folder where a recipe that is converted without training goes.

    Raises:
        InputError: If it holds anything but the same conversion.
    """
    folder = Path("runs") / source.stem
    if (folder / run_folder.CHECKPOINT).exists():
        raise InputError(f"{folder}: holds a trained run; convert that folder, or give --output")
    open_run(recipe, folder, resume=True)
    return folder


def conversion_report(
    recipe: Recipe, model: nn.Module, integer: nn.Module, loaders: Loaders
) -> dict[str, Any]:
    """Evaluate the fake-quantized and the integer model on the validation set; count bytes."""
    loss = assembly.make_loss(recipe)
    expected, labels = logits_of(model.eval(), loaders.validation.batches(0))
    given, _ = logits_of(integer, loaders.validation.batches(0))
    before, after = (
        evaluate(lambda x: x, [(logits, labels)], loss) for logits in (expected, given)
    )
    state = converted_state(integer)
    bits = sum(spec.weights * (spec.weight_bits or 32) for spec in state.layers)
    others = [t for name, t in integer.state_dict().items() if not name.endswith(".codes")]
    own = [p for name, p in model.named_parameters() if "_quantizer." not in name]
    return {
        "float_bytes": 4 * sum(p.numel() for p in own),
        "integer_bytes": -(-bits // 8) + sum(t.numel() * t.element_size() for t in others),
        "validation_accuracy_before": before.accuracy,
        "validation_accuracy_after": after.accuracy,
        "validation_images": after.images,
        "max_abs_difference": float((expected - given).abs().max()),
        "layers": [spec.as_dict() for spec in state.layers],
        "left_float": state.left_float,
        "notes": state.notes,
    }


def export_report(
    recipe: Recipe,
    integer: nn.Module,
    architecture: Architecture,
    loaders: Loaders,
    path: Path,
    described: dict[str, Any],
    image: Tensor,
) -> dict[str, Any]:
    """Compare an ONNX file with its integer model in the runtime, and in time with a float one.

    `image` [1, C, H, W] is what the time is measured on.
    """
    codes = parity.check_codes(path, integer, described["layers"])
    figures = parity.compare_outputs(path, integer, loaders.validation.batches(0))
    if described["ceil"] == "shifted":
        share = parity.shifted_share(integer, loaders.validation.batches(0))
        figures["ceil_shifted_share"] = share
    fused = sum(node.op_type in INTEGER_KERNELS for node in optimized_graph(path).node)
    float_path = path.with_name(f"{path.name}.float.onnx")
    try:
        parity.export_float(rebuild_model(recipe.model.name, architecture), image, float_path)
        float_ms, exported_ms = parity.latencies([float_path, path], image)
    finally:
        float_path.unlink(missing_ok=True)
    layers = described["layers"]
    weights = sum(spec.weights for spec in converted_state(integer).layers if spec.weight_bits)
    packed = sum(layer["packed_bytes"] for layer in layers if layer["weight_bits"])
    return {
        "bits_per_weight_on_disk": 8 * (packed + described["table_bytes"]) / max(1, weights),
        "quantized_weights": weights,
        "file_bytes": path.stat().st_size,
        "runtime": {"name": "onnxruntime", "version": RUNTIME_VERSION},
        "codes_compared": codes,
        **figures,
        "fused_share": fused / max(1, len(layers)),
        "fused_layers": fused,
        "quantized_layers": len(layers),
        "latency_ms": {"float": float_ms, "exported": exported_ms},
        "left_float": described["left_float"],
    }
