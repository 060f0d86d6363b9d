"""The step that a recipe asks for: compiled, captured, or beside a population that is known."""

import torch
from torch import nn

from qtool.data.loaders import Loaders
from qtool.quantizers.control import make_traceable
from qtool.recipe.recipe import Recipe
from qtool.training.captured import CapturedStep
from qtool.training.compiled import compiled_forward
from qtool.training.optimizers import make_capturable
from qtool.training.population import Population
from qtool.training.step import TakeStep, TrainingStep


def fast_step(step: TrainingStep, recipe: Recipe, device: torch.device) -> TakeStep:
    """Return the step with its model compiled, its kernels captured, as far as the recipe says."""
    if recipe.training.compile:
        step.forward = compiled_forward(step.model)
        if step.replicas is not None:
            step.replicas = step.replicas.running(step.forward)
    if not recipe.training.cuda_graph:
        return step
    make_traceable(step.model)
    make_capturable(step.optimizer, device)
    return CapturedStep(step)


def population_of(recipe: Recipe, model: nn.Module, loaders: Loaders) -> Population | None:
    """Return what knows the population loss of the model, where there are closed forms of it."""
    if recipe.why_no_closed_form():
        return None
    assert loaders.teacher is not None
    v, w = model.get_parameter("second.weight"), model.get_parameter("first.weight")
    takes_over = recipe.training.gradient == "population"
    return Population(v, w, *loaders.teacher, recipe.closed_form if takes_over else None)
