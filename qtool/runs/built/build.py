"""What a recipe names, built: data and network.

Rooms below this one take plain arguments, so that every stage can be tested without a recipe.
"""

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from qtool.console import note
from qtool.data.datasets import DATASETS
from qtool.data.loaders import Loaders, make_loaders
from qtool.data.sources import known_channels, known_classes, known_image_size
from qtool.errors import DataError, InputError, ModelError, RecipeError
from qtool.models.architecture import Architecture
from qtool.models.two_layers import begin_near_spurious_minimum
from qtool.models.user_models import refuse_unfit
from qtool.models.vision import RGB, Built, build_model, input_channels, says_channels
from qtool.problems import report
from qtool.quantizers.calibrate import calibrate
from qtool.quantizers.control import blend_alphas
from qtool.quantizers.door.entry import refuse_if_nothing_is_chosen
from qtool.quantizers.layer import layout_of
from qtool.quantizers.layers import plain_type
from qtool.quantizers.prepare import pattern_problems, prepare
from qtool.recipe.model import Model
from qtool.recipe.recipe import Recipe
from qtool.runs.access import OWN, Access
from qtool.settings.quantization import Quantization
from qtool.settings.user_code import UserCode
from qtool.settings.user_parts import is_users
from qtool.training.batch_norm import reestimate_batch_norm
from qtool.training.frozen import freeze_problems, still_norms
from qtool.training.losses import LOSSES

AFTER_A_BLEND = 100  # training batches for batch norm statistics, unless the recipe says otherwise


def make_data(
    recipe: Recipe,
    device: torch.device,
    access: Access = OWN,
    *,
    source: str = "the recipe",
    validation_samples: int | None = None,
) -> Loaders:
    """Return the recipe's batches on a device, of validation so many images at most.

    Args:
        recipe: whose data they are.
        device: that batches are put on.
        access: what the recipe may reach, and what the user says of its data.
        source: of the recipe, for messages.
        validation_samples: at most so many, evenly over the set.

    Raises:
        DataError: If the data set is missing, malformed, or may not be read.
        RecipeError: If what the user says of the data is wrong, or the loss takes no such labels.
    """
    recipe = access.applied(recipe, source)
    data = recipe.data
    try:
        made = DATASETS.build(data.name, **data.params)(access.root(recipe))
    except DataError as error:
        if access.whose == "own":
            raise
        raise DataError(f"{source}: {error}") from error
    loaders = make_loaders(
        made,
        batch_size=data.batch_size,
        image_size=data.image_size,
        channels=_channels(recipe.model),
        train_samples=data.train_samples,
        validation_samples=validation_samples,
        holdout=data.holdout,
        repeats=data.repeats,
        seed=recipe.seed,
        device=device,
        augment=data.augment,
        workers=data.workers,
        channels_last=recipe.training.channels_last,
    )
    if loaders.note:
        note(loaders.note)
    _refuse_other_loss(recipe, loaders, source)
    return loaders


def _refuse_other_loss(recipe: Recipe, loaders: Loaders, source: str) -> None:
    """Check that the loss takes several classes of an image, where the data have them.

    A loss for one class would take them for shares of it; one of the user's own may do as it likes.
    """
    name = recipe.training.loss.name
    fitting = [each for each in LOSSES.names() if LOSSES.facts(each).several]
    if loaders.several and name not in fitting and not is_users(name):
        why = f"images may have several classes, which {name} does not take"
        raise RecipeError(f"{source}: training.loss: {why}; choose {' or '.join(fitting)}")


def _channels(model: Model) -> int | None:
    """Return how many channels a network's images have, None where those of the data."""
    return model.channels or RGB if says_channels(model.name) else input_channels(model.name)


def refuse_other_data(data: Loaders, architecture: Architecture, source: str) -> None:
    """Check that images are such as a network takes, and tell as many classes apart.

    Raises:
        DataError: If they are not.
    """
    here = {"classes": data.classes, "image_size": data.image_size}
    there = {"classes": architecture["classes"], "image_size": architecture["image_size"]}
    for key, count in here.items():
        if count != there[key]:
            what = key.replace("_", " ")
            raise DataError(
                f"{source}: its network was made for {there[key]} {what}, and the data have {count}"
            )


def load_checked(
    path: Path,
    assignments: list[str] | None = None,
    *,
    access: Access | None = None,
    code: UserCode | None = None,
) -> Recipe:
    """Read a recipe and check it in full, also against its network, before anything is built.

    Args:
        path: of the recipe.
        assignments: of `--set`, where there is no access that holds them.
        access: what the recipe may reach, and what the user says of it.
        code: where the user's own files are looked for, and which run; None: what access says.

    Raises:
        RecipeError: Lists every problem with its dotted place.
    """
    allowed = (access or Access.of(assignments=assignments)).to_recipe(path)
    _, recipe = allowed.read(path, code or allowed.code_of(path))
    check_against_network(recipe, str(path))
    return recipe


def check_against_network(recipe: Recipe, source: str) -> None:
    """Check patterns and image size against the network's shape, without numbers or data.

    Raises:
        RecipeError: If a pattern matches no layer, nothing is left to quantize or to train, or the
            images are too small.
    """
    data = recipe.data
    if data.image_size is None and known_image_size(data.name, **data.params) is None:
        return
    try:
        with torch.device("meta"):
            built = make_network_without_data(recipe)
        _refuse_unfit(built, recipe, known_classes(data.name, **data.params))
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from error
    network = built.model
    if found := pattern_problems(network, recipe.quantization):
        raise report(source, [(f"quantization.{place}", why) for place, why in found])
    if found := freeze_problems(network, recipe.training.freeze):
        raise report(source, [(f"training.{place}", why) for place, why in found])
    try:
        refuse_if_nothing_is_chosen(network, recipe.quantization)
    except ModelError as error:
        raise RecipeError(f"{source}: {error}") from error


def make_network(recipe: Recipe, loaders: Loaders) -> Built:
    """Return the recipe's float network, on the CPU; the seed decides its initial weights.

    Raises:
        RecipeError: If the network does not take such images.
        DataError: If its weights cannot be had.
    """
    torch.manual_seed(recipe.seed)
    model = recipe.model
    built = build_model(
        model.name,
        loaders.classes,
        loaders.channels,
        loaders.image_size,
        weights=model.weights,
        **model.params,
    )
    _refuse_unfit(built, recipe, loaders.classes)
    if built.note:
        note(built.note)
    if found := freeze_problems(built.model, recipe.training.freeze):
        raise report("the recipe", [(f"training.{place}", why) for place, why in found])
    with torch.random.fork_rng(devices=[]):  # what is drawn later does not depend on the start
        if model.initialization == "he_uniform":
            _draw_he_uniform(built.model, recipe.quantization)
        if model.start == "near_spurious_minimum":
            assert loaders.teacher is not None
            begin_near_spurious_minimum(built.model, *loaders.teacher)
    return built


def _refuse_unfit(built: Built, recipe: Recipe, classes: int | None) -> None:
    """Check that a network which qtool does not know takes the images, and tells classes apart."""
    if says_channels(recipe.model.name):
        sizes = built.architecture
        refuse_unfit(
            built.model,
            recipe.model.name,
            classes=classes,
            channels=sizes.get("channels", RGB),
            image_size=sizes["image_size"],
        )


def _draw_he_uniform(network: nn.Module, quantization: Quantization) -> None:
    """Draw the weights of layers to be quantized from U(-m, m), m = sqrt(6 / fan_in), in place."""
    for name, layer in network.named_modules():
        if plain_type(layer) and quantization.for_layer(name)[0] is not None:
            weight = layer.get_parameter("weight")
            fan_in = layout_of(layer).rows(weight)[0].numel()
            bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(fan_in))  # as torch.nn.init rounds it
            nn.init.uniform_(weight, -bound, bound)


def make_network_without_data(recipe: Recipe) -> Built:
    """Return the recipe's network as far as the recipe tells: no data, no weights, no download.

    Where only the data would tell, there are 1000 classes, or as many as fit hidden neurons.
    """
    data, model = recipe.data, recipe.model
    any_number = model.parameter("hidden", 1000)
    return build_model(
        model.name,
        known_classes(data.name, **data.params) or any_number,
        _channels(model) or known_channels(data.name) or RGB,
        data.image_size or known_image_size(data.name, **data.params) or 224,
        weights="none",
        **model.params,
    )


def prepare_network(
    recipe: Recipe,
    network: nn.Module,
    example: Tensor,
    *,
    search: bool = True,
    trains: bool = True,
) -> nn.Module:
    """Return the fake-quantized network on the example's device, in the recipe's memory format.

    `search` is False where a state is loaded next, so that no scale is searched in vain; `trains`
    is False where nothing will train it.
    """
    network = network.to(example.device)
    if recipe.training.channels_last:
        # torch documents this keyword, but its overloads leave it out
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    try:
        return prepare(network, recipe.quantization, example, search=search, trains=trains)
    except torch.OutOfMemoryError as error:
        raise InputError(f"not enough memory on {example.device}; lower data.batch_size") from error


def calibrate_on(model: nn.Module, recipe: Recipe, loaders: Loaders) -> None:
    """Set the activation ranges from the recipe's first training batches."""
    calibrate(model, calibration_images(recipe, loaders))


def calibration_images(recipe: Recipe, loaders: Loaders) -> Iterator[Tensor]:
    """Yield the images [B, C, H, W] of the recipe's first training batches.

    What judges a network, the validation images and those held out, is never among them.
    """
    return islice(loaders.training_images(0), recipe.training.calibration_batches)


def reestimate_batch_norm_on(model: nn.Module, recipe: Recipe, loaders: Loaders) -> None:
    """Estimate batch norm statistics on training batches, where the recipe or a blend asks for it.

    While alpha rises, the moving averages follow a network that is not yet the one to be deployed.
    """
    count = recipe.training.batch_norm_batches
    if count is None:
        count = AFTER_A_BLEND if blend_alphas(model) else 0
    if count:
        batches = islice(loaders.train.batches(recipe.training.epochs), count)
        still = still_norms(model, recipe.training.freeze)
        reestimate_batch_norm(model, (images for images, _ in batches), still=still)
