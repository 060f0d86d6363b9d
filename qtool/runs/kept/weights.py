"""model.safetensors: a trained network's weights in float, under its own names, for other tools.

They are the latent weights, as they are before rounding, with biases and batch norms; no scale of a
quantizer is among them. The file is written when training is finished, beside the checkpoint whose
SHA-256 it names, and taken away when the run goes on. `model.weights` of a recipe takes it, too.
"""

from collections.abc import Collection, Mapping

import torch
from safetensors.torch import save
from torch import Tensor, nn

import qtool
from qtool.console import say
from qtool.files.safetensors_digest import write_with_digest
from qtool.graph.attention import held_by_attention
from qtool.models.architecture import Architecture
from qtool.models.vision import rebuild_model
from qtool.recipe.recipe import Recipe
from qtool.runs.kept.folder import RunFolder


def write_weights(
    model: nn.Module, recipe: Recipe, architecture: Architecture, folder: RunFolder, made_of: str
) -> None:
    """Write the weights of a fake-quantized network into a run's folder.

    Args:
        model: prepared, trained.
        recipe: of the run.
        architecture: of its network.
        folder: of the run.
        made_of: SHA-256 of the checkpoint that holds the same.

    Raises:
        InputError: If they cannot be written there.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):  # names alone
        names = rebuild_model(recipe.model.name, architecture).state_dict()
    found = float_weights(model.state_dict(), names)
    if lost := [name for name in names if name not in found]:
        say(f"note: no {folder.weights.name}: {lost[0]} is no single tensor of the network")
        return
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in found.items()}
    said = {"format": "pt", "qtool": qtool.__version__, "made_of": made_of}
    write_with_digest(folder.weights, save(tensors), said)


def float_weights(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return a prepared network's tensors by the names that the float network has for them."""
    held = {**state, **held_by_attention(state)}
    return {name: held[name] for name in names if name in held}
