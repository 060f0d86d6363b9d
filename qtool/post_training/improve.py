"""Where a network that is not trained is improved, between calibration and conversion."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from qtool.graph.inputs import inputs_from
from qtool.post_training import by_block as by_block
from qtool.post_training import by_layer as by_layer
from qtool.post_training import default as default
from qtool.post_training.begin import A_QUARTER
from qtool.post_training.equalization import equalize
from qtool.post_training.methods import DEFAULT, METHODS, Calibrated, method_of
from qtool.post_training.walk import in_one
from qtool.quantizers.door.deployed import prepared_state
from qtool.quantizers.saturation import could_saturate
from qtool.reports.improvements import Applied


@dataclass(frozen=True)
class Improved:
    """What was done to a network that is not trained.

    Attributes:
        method: by name, with the parameters that were given.
        images: that it was calibrated and improved with.
        applied: what was done, in order.
    """

    method: str
    images: int
    applied: list[Applied]


def improve(
    model: nn.Module,
    batches: Iterable[object],
    method: str = DEFAULT,
    *,
    seed: int = 0,
    keep: Path | None = None,
    saturation: Literal["allow", "avoid"] = "allow",
) -> Improved:
    """Improve a prepared and calibrated model that is not to be trained, in place.

    Args:
        model: from `prepare`, its ranges set by `calibrate`; it is in evaluation mode afterwards.
        batches: as `calibrate` takes them; some hundred images that the model has been, or could
            have been, trained on.
        method: a name in METHODS, or `{name: ..., parameter: ...}` as text.
        seed: of whatever the method draws.
        keep: file in which a method that takes minutes keeps how far it is.
        saturation: avoid chooses codes of channels that could saturate on processors without VNNI
            anew, so that none does, and corrects biases after that.

    Raises:
        RecipeError: If there is no such method, or it has no such parameter.
        ValueError: If the model is not prepared, or there is no batch, or one has another form.
    """
    choice = method_of(method)
    chosen = METHODS.build(choice.name, **choice.params)
    form = prepared_state(model).form_of_inputs
    inputs = list(inputs_from(batches, form, model, "improve"))
    model.eval()
    applied = equalize(model, in_one(inputs, A_QUARTER))
    given = Calibrated(model, inputs, seed, keep, saturation)
    layers = given.in_order if saturation == "avoid" else None
    applied += chosen(given)
    if layers is not None and could_saturate(model):
        applied += layers.avoid_saturation()
    return Improved(str(choice), sum(len(batch.tensors[0]) for batch in inputs), applied)
