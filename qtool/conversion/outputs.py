"""The outputs of two models, of whatever form, judged by the rule of agreement."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qtool.errors import ConversionError
from qtool.evaluation import (
    SAME,
    agreement,
    agreement_of_values,
    is_constant,
    judge,
    sure_distance,
)
from qtool.graph.inputs import tensors_in


@dataclass
class Outputs:
    """What two models gave on the same batches.

    Attributes:
        images: how many there were.
        pairs: for each tensor of the output, what was expected and given on each batch.
    """

    images: int = 0
    pairs: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)

    def take(self, images: int, expected: object, given: object) -> None:
        """Take both outputs on one batch."""
        both = [list(tensors_in(output)) for output in (expected, given)]
        shapes = [[list(tensor.shape) for tensor in output] for output in both]
        if shapes[0] != shapes[1]:
            raise ConversionError(
                f"the integer model gives tensors of shapes {shapes[1]}, the fake-quantized one "
                f"{shapes[0]}"
            )
        if not both[0]:
            kind = type(expected).__name__
            raise ConversionError(f"the model's output, {kind}, holds no tensor to compare")
        if not self.images:
            self.pairs = [[] for _ in both[0]]
        if len(both[0]) != len(self.pairs):
            raise ConversionError(
                f"the model gives {len(self.pairs)} tensors on one batch, {len(both[0])} on another"
            )
        for place, pair in enumerate(zip(*both, strict=True)):
            if pair[0].numel():
                self.pairs[place].append((pair[0].cpu(), pair[1].cpu()))
        self.images += images

    def judge(self, *, room: float) -> tuple[dict[str, float], str]:
        """Return the figures, of the output that agrees least, and why they are too bad, or ""."""
        worst: tuple[float, dict[str, float], str] | None = None
        for place, pairs in enumerate(self.pairs):
            if not pairs:
                continue
            figures = self._figures(pairs)
            given = torch.cat([values.double().flatten() for _, values in pairs])
            # a class that every image has tells nothing of agreement, but the logits do
            one_class = "clear_share" in figures and _is_one_class(pairs)
            weighed = figures | {"clear_share": 0.0} if one_class else figures
            why = judge(weighed, given, room=room)
            if why and _is_one_image(figures):
                why = ""
            if why and len(self.pairs) > 1:
                why = f"output {place}: {why}"
            tenth = sure_distance(figures)
            apart = figures["median_abs_difference"] / tenth if tenth else 0.0
            rank = torch.inf if why else apart
            if worst is None or rank > worst[0]:
                worst = rank, figures, why
        if worst is None:
            raise ConversionError("the model's outputs on the proof's batches hold no values")
        return worst[1], worst[2]

    @property
    def prove_little(self) -> bool:
        """Tell whether all that was expected is one value, or the same for every image."""
        for pairs in filter(None, self.pairs):
            rows = [a.double().reshape(len(a) if a.ndim else 1, -1) for a, _ in pairs]
            if any(row.shape[1] != rows[0].shape[1] for row in rows):
                return False
            values = torch.cat(rows)
            apart = (values - values[:1]).abs().max() > SAME * values.abs().max()
            if bool(values.amin() < values.amax()) and (len(values) == 1 or bool(apart)):
                return False
        return True

    def _figures(self, pairs: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """Return how far one output agrees; as logits where it is the only one and may be such."""
        logits = len(self.pairs) == 1 and all(
            a.ndim == 2 and a.is_floating_point() and a.shape[1] == pairs[0][0].shape[1]
            for a, _ in pairs
        )
        if not logits:
            return agreement_of_values(pairs)
        return agreement(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs]))


def _is_one_class(pairs: list[tuple[Tensor, Tensor]]) -> bool:
    """Tell whether all images have the same top class, where it is expected."""
    return len(torch.cat([expected.argmax(1) for expected, _ in pairs]).unique()) == 1


def _is_one_image(figures: Mapping[str, float]) -> bool:
    """Tell whether logits differ in the top class of one clear image, and little in the median.

    A value on a rounding threshold may do that, and among fewer than fifty images one is more than
    two in a hundred.
    """
    if "clear_share" not in figures or is_constant(figures):
        return False
    apart = (1 - figures["clear_agreement"]) * figures["clear_share"] * figures["images"]
    return round(apart) <= 1 and figures["median_abs_difference"] <= sure_distance(figures)
