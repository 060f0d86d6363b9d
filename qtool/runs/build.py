"""What a recipe names, built: device, data, network, trainer.

Only here and in the pipeline do a recipe and a component meet, so that every stage can be tested
with plain arguments.
"""

import os
import platform
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import qtool
from qtool.console import say
from qtool.data.datasets import DATASETS, default_root
from qtool.data.loaders import Loaders, make_loaders
from qtool.data.sources import known_channels, known_classes, known_image_size
from qtool.errors import InputError, RecipeError
from qtool.models.two_layers import begin_near_spurious_minimum
from qtool.models.vision import Built, build_model, input_channels
from qtool.numerics.schedules import SCHEDULES, Schedule, with_warmup
from qtool.problems import report
from qtool.quantizers.calibrate import calibrate
from qtool.quantizers.layers import QUANT_TYPES, blend_alphas, compile_kernels
from qtool.quantizers.prepare import pattern_problems, prepare
from qtool.recipe.file import load_recipe
from qtool.recipe.recipe import Recipe
from qtool.settings.quantization import Quantization
from qtool.training.batch_norm import reestimate_batch_norm
from qtool.training.loop import Trainer
from qtool.training.losses import LOSSES, Loss
from qtool.training.optimizers import OPTIMIZERS, parameter_groups
from qtool.training.population import Population

AFTER_A_BLEND = 100  # training batches for batch norm statistics, unless the recipe says otherwise


def pick_device(wanted: str) -> torch.device:
    """Return the device that `--device` names: auto, cpu, cuda or cuda:N.

    Raises:
        InputError: If there is no such device.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = wanted.partition(":")
    numbered = kind == "cuda" and index.isascii() and index.isdecimal()
    if wanted not in ("cpu", "cuda") and not numbered:
        raise InputError(f"--device {wanted}: choose auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count <= int(index or 0):
            have = f"only {count}" if count else "no CUDA device"
            raise InputError(f"--device {wanted}: this machine has {have}; use cpu or auto")
    return torch.device(wanted)


def device_name(device: torch.device) -> str:
    """Return what people call the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor_name()}, {torch.get_num_threads()} threads"


def _processor_name() -> str:
    """Return the processor's name; only Linux tells it in full."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or f"{platform.machine()} CPU"


def environment(device: torch.device) -> dict[str, Any]:
    """Return what the numbers of a run depend on beside its recipe."""
    return {
        "qtool": qtool.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


def make_data(recipe: Recipe, device: torch.device) -> Loaders:
    """Return the recipe's batches on a device.

    Raises:
        DataError: If the data set is missing or malformed.
    """
    data = recipe.data
    root = Path(data.root).expanduser() if data.root else default_root()
    source = DATASETS.build(data.name, **data.params)(root)
    loaders = make_loaders(
        source,
        batch_size=data.batch_size,
        image_size=data.image_size,
        channels=input_channels(recipe.model.name),
        train_samples=data.train_samples,
        repeats=data.repeats,
        seed=recipe.seed,
        device=device,
        augment=data.augment,
        workers=data.workers,
        channels_last=recipe.training.channels_last,
    )
    if loaders.note:
        say(loaders.note)
    return loaders


def load_checked(path: Path, assignments: list[str] | None = None) -> Recipe:
    """Read a recipe and check it in full, also against its network, before anything is built.

    Raises:
        RecipeError: Lists every problem with its dotted place.
    """
    recipe = load_recipe(path, assignments)
    check_against_network(recipe, str(path))
    return recipe


def check_against_network(recipe: Recipe, source: str) -> None:
    """Check overrides and image size against the network's shape, without numbers or data.

    Raises:
        RecipeError: If a pattern matches no layer, or the images are too small.
    """
    data = recipe.data
    if data.image_size is None and known_image_size(data.name, **data.params) is None:
        return
    try:
        with torch.device("meta"):
            network = make_network_without_data(recipe).model
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from error
    if found := pattern_problems(network, recipe.quantization):
        raise report(source, [(f"quantization.{place}", why) for place, why in found])


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
    if built.note:
        say(built.note)
    with torch.random.fork_rng(devices=[]):  # what is drawn later does not depend on the start
        if model.initialization == "he_uniform":
            _draw_he_uniform(built.model, recipe.quantization)
        if model.start == "near_spurious_minimum":
            assert loaders.teacher is not None
            begin_near_spurious_minimum(built.model, *loaders.teacher)
    return built


def _draw_he_uniform(network: nn.Module, quantization: Quantization) -> None:
    """Draw the weights of layers to be quantized from U(-m, m), m = sqrt(6 / fan_in), in place."""
    for name, layer in network.named_modules():
        if type(layer) in QUANT_TYPES and quantization.for_layer(name)[0] is not None:
            nn.init.kaiming_uniform_(layer.get_parameter("weight"), nonlinearity="relu")


def make_network_without_data(recipe: Recipe) -> Built:
    """Return the recipe's network as far as the recipe tells: no data, no weights, no download.

    Where only the data would tell, there are 1000 classes, or as many as fit hidden neurons.
    """
    data, model = recipe.data, recipe.model
    any_number = model.params.get("hidden", 1000)
    return build_model(
        model.name,
        known_classes(data.name, **data.params) or any_number,
        input_channels(model.name) or known_channels(data.name) or 3,
        data.image_size or known_image_size(data.name, **data.params) or 224,
        **model.params,
    )


def prepare_network(recipe: Recipe, network: nn.Module, example: Tensor) -> nn.Module:
    """Return the fake-quantized network on the example's device, in the recipe's memory format."""
    network = network.to(example.device)
    if recipe.training.channels_last:
        # torch documents this keyword, but its overloads leave it out
        network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    try:
        return prepare(network, recipe.quantization, example)
    except torch.OutOfMemoryError as error:
        raise InputError(f"not enough memory on {example.device}; lower data.batch_size") from error


def calibrate_on(model: nn.Module, recipe: Recipe, loaders: Loaders) -> None:
    """Set the activation ranges from the recipe's first training batches."""
    batches = islice(loaders.train.batches(0), recipe.training.calibration_batches)
    calibrate(model, (images for images, _ in batches))


def reestimate_batch_norm_on(model: nn.Module, recipe: Recipe, loaders: Loaders) -> None:
    """Estimate batch norm statistics on training batches, where the recipe or a blend asks for it.

    While alpha rises, the moving averages follow a network that is not yet the one to be deployed.
    """
    count = recipe.training.batch_norm_batches
    if count is None:
        count = AFTER_A_BLEND if blend_alphas(model) else 0
    if count:
        batches = islice(loaders.train.batches(recipe.training.epochs), count)
        reestimate_batch_norm(model, (images for images, _ in batches))


def first_images(loaders: Loaders) -> Tensor:
    """Return the first training batch's images [B, C, H, W]."""
    return next(iter(loaders.train.batches(0)))[0]


def make_loss(recipe: Recipe) -> Loss:
    """Return the recipe's loss."""
    return LOSSES.build(recipe.training.loss.name, **recipe.training.loss.params)


def make_learning_rate(recipe: Recipe) -> Schedule:
    """Return the recipe's learning rate as a function of progress."""
    choice = recipe.training.learning_rate
    params = choice.params
    warmup = params.pop("warmup", 0.0)
    return with_warmup(SCHEDULES.build(choice.name, **params), warmup)


def make_trainer(
    recipe: Recipe, model: nn.Module, loaders: Loaders, device: torch.device
) -> Trainer:
    """Return what trains the model, at its very beginning."""
    training = recipe.training
    on_cuda = device.type == "cuda"
    compile_kernels(model, training.compile and not on_cuda)
    if training.cuda_graph and not on_cuda:
        say("note: going on without training.cuda_graph, which is for CUDA devices")
    rate = make_learning_rate(recipe)
    optimizer = OPTIMIZERS.build(training.optimizer.name, **training.optimizer.params)
    return Trainer(
        model=model,
        train=loaders.train,
        validation=loaders.validation,
        loss=make_loss(recipe),
        optimizer=optimizer(parameter_groups(model), rate(0.0)),
        learning_rate=rate,
        device=device,
        precision=getattr(torch, training.precision),
        epochs=training.epochs,
        history=[],
        compiles=training.compile and on_cuda,
        captures=training.cuda_graph and on_cuda,
        population=_population(recipe, model, loaders),
    )


def _population(recipe: Recipe, model: nn.Module, loaders: Loaders) -> Population | None:
    """Return what knows the population loss of the model, where there are closed forms of it."""
    if recipe.why_no_closed_form():
        return None
    assert loaders.teacher is not None
    v, w = model.get_parameter("second.weight"), model.get_parameter("first.weight")
    takes_over = recipe.training.gradient == "population"
    return Population(v, w, *loaders.teacher, recipe.closed_form if takes_over else None)
