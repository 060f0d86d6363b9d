"""Whose widths are measured and chosen: a recipe, its data and its network with weights."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from qtool.bits.costs import NetworkCost, cost_of_network, macs_of
from qtool.bits.rounded import compensated_weights
from qtool.bits.sensitivity import Measured, Shown, judge
from qtool.console import say_nothing
from qtool.conversion.to_integer import convert
from qtool.data.loaders import Loaders
from qtool.export.writing.onnx_qdq import write_onnx
from qtool.export.writing.request import Writing
from qtool.export.writing.saved import bytes_of
from qtool.graph.copies import copy_of
from qtool.models.architecture import Architecture
from qtool.post_training.improve import improve
from qtool.quantizers.layers import quant_layers
from qtool.recipe.recipe import Recipe
from qtool.reports.results import ExportDescription
from qtool.runs.built import build
from qtool.runs.built.equipment import make_loss
from qtool.runs.converted.integer import about, usage_of
from qtool.runs.converted.untrained import calibrated
from qtool.settings.quantization import Override, widths_of
from qtool.settings.tensors import WeightQuantization

# by so many of those that calibrate it is measured: as many as have so many pixels in all channels
FEWEST, IMAGES, PIXELS = 64, 256, 2**23
AT_ONCE = 2**22  # pixels in all channels, whose values in a network are kept together
LAST = 0.1  # of the training images: that judge, where none are held out
SPECIAL = str.maketrans({"[": "[[]", "*": "[*]", "?": "[?]"})  # in a pattern of names


@dataclass(frozen=True)
class Subject:
    """A recipe, its data and its float network with weights.

    Attributes:
        recipe: without a budget.
        network: in float and evaluation mode, on the data's device.
    """

    recipe: Recipe
    data: Loaders
    network: nn.Module
    architecture: Architecture

    @cached_property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The images that calibrate, with their labels, as many as are measured by."""
        given = (self.data.unmixed or self.data.train).batches(0)
        each = self.data.first_images[0].numel()
        left = min(IMAGES, max(FEWEST, PIXELS // each))
        found: list[tuple[Tensor, Tensor]] = []
        for images, labels in islice(given, self.recipe.training.calibration_batches):
            parts = (part[:left].split(max(1, AT_ONCE // each)) for part in (images, labels))
            found += [pair for pair in zip(*parts, strict=True) if len(pair[0])]
            left = max(0, left - len(images))
            if not left:
                break
        return found

    @cached_property
    def shown(self) -> Shown:
        """What its networks are measured by."""
        return Shown.of(self.network, self.batches, make_loss(self.recipe))

    def held_out(self) -> Callable[[], Iterable[tuple[Tensor, Tensor]]]:
        """Return what gives images of the training data that nothing else looks at, and labels.

        They are those of `data.holdout`, or else the last tenth of the training images in the order
        of the first epoch, behind those that calibrate.

        Raises:
            DataError: If none are left.
        """
        data, recipe = self.data, self.recipe
        batches = data.holdout
        if batches is None:
            calibrate = recipe.training.calibration_batches * recipe.data.batch_size
            batches = data.last_images(recipe.seed, share=LAST, behind=calibrate)
        return lambda: batches.batches(0)

    @cached_property
    def in_float(self) -> Measured:
        """How the float network does."""
        return judge(self.network, self.shown)

    @cached_property
    def as_the_recipe_says(self) -> Measured:
        """How the network does as the recipe has it."""
        return self.judged(self.improved)

    @cached_property
    def improved(self) -> nn.Module:
        """The network as the recipe has it, and as `qtool convert` improves it by default."""
        return self.quantized(self.recipe)

    @cached_property
    def model(self) -> nn.Module:
        """The network as the recipe has it, calibrated and not improved."""
        with say_nothing(when=True):
            return calibrated(self.recipe, copy_of(self.network), self.data).eval()

    @cached_property
    def cost(self) -> NetworkCost:
        """What its layers cost."""
        image = self.data.first_images[:1]
        return cost_of_network(self.model, macs_of(copy_of(self.network), image))

    def quantized(self, recipe: Recipe) -> nn.Module:
        """Return the network as another recipe has it, improved by what costs seconds."""
        with say_nothing(when=True):
            model = calibrated(recipe, copy_of(self.network), self.data)
            images = build.calibration_images(recipe, self.data)
            improve(model, images, seed=recipe.seed)
        return model.eval()

    def judged(self, model: nn.Module) -> Measured:
        """Return how a quantized network does."""
        return judge(model, self.shown)

    @cached_property
    def base(self) -> dict[str, WeightQuantization]:
        """The settings of each quantized weight, with the range that is taken untrained."""
        layers = quant_layers(self.model)
        found = {name: layers[name].weight_quantizer for name in self.cost.layers}
        kept = {name: quantizer.settings for name, quantizer in found.items() if quantizer}
        return {n: said for n, said in kept.items() if isinstance(said, WeightQuantization)}

    @cached_property
    def said(self) -> set[str]:
        """The layers whose width an override says."""
        found = {name: self.recipe.quantization.override_of(name) for name in self.cost.layers}
        return {
            name
            for name, override in found.items()
            if override is not None and "bits" in (override[1].weights or {})
        }

    def widths(self, among: Sequence[int]) -> dict[str, dict[int, WeightQuantization]]:
        """Return layer -> width -> its settings, of those among some that it may have."""
        return {name: widths_of(settings, among) for name, settings in self.base.items()}

    def weights_at(
        self, widths: Mapping[str, Mapping[int, WeightQuantization]]
    ) -> dict[tuple[str, int], Tensor]:
        """Return layer and width -> its weight as it is rounded where nothing is trained."""
        return compensated_weights(self.model, self.batches[0][0], widths)

    def with_widths(self, widths: Mapping[str, int]) -> Recipe:
        """Return the recipe with overrides that say the widths of layers, those first."""
        return self.recipe.with_overrides(self.overrides(widths))

    def overrides(self, widths: Mapping[str, int]) -> list[dict[str, object]]:
        """Return overrides that say the widths of layers, of one width together.

        What an override of the recipe says of a layer beside its width goes along, as the first
        that matches wins. A width that the recipe says already is not said again: a file keeps its
        recipe, and the same widths are to take the same bytes.
        """
        found: dict[tuple[str, int], tuple[Override | None, list[str]]] = {}
        for name, bits in widths.items():
            if self.base[name].bits == bits:
                continue
            where, own = self.recipe.quantization.override_of(name) or ("", None)
            found.setdefault((where, bits), (own, []))[1].append(name.translate(SPECIAL))
        made: list[dict[str, object]] = []
        for (_, bits), (own, names) in found.items():
            more = {} if own is None else own.model_dump()
            weights = {**(own.weights or {} if own is not None else {}), "bits": bits}
            made.append({**more, "match": names, "weights": weights})
        return made

    def written(self, recipe: Recipe, path: Path) -> tuple[int, ExportDescription]:
        """Write the file of a recipe that is not trained; return its bytes, and what it holds.

        It is what `qtool convert RECIPE` and `qtool export` make, and is not proven.
        """
        integer = convert(self.quantized(recipe), [self.data.first_images])
        writing = Writing(unproven=True).saying(
            about(recipe, self.architecture), usage_of(self.data)
        )
        described = write_onnx(integer, self.data.first_images, path, writing)
        return bytes_of(path), described


def built_subject(recipe: Recipe, data: Loaders, device: torch.device) -> Subject:
    """Return a recipe's network with its weights, as `qtool convert RECIPE` begins with it."""
    built = build.make_network(recipe, data)
    network = built.model.eval().to(device)
    return Subject(recipe.without_budget(), data, network, built.architecture)
