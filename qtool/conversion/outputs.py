"""The outputs of two models, of whatever form, judged by the rule of agreement."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

import torch
from torch import Tensor

from qtool.evaluation import (
    SAME,
    agreement,
    agreement_of_values,
    is_constant,
    judge,
    sure_distance,
)
from qtool.graph.inputs import tensors_in

NONE = {"sigma": 0.0, "max_abs_difference": 0.0, "median_abs_difference": 0.0}  # without outputs


@dataclass
class Outputs:
    """What two models gave on the same batches.

    Attributes:
        images: how many there were.
        pairs: for each tensor or number of the output, what was expected and given on each batch.
        compared, apart: how many of them had the same shape on both sides, and another.
    """

    images: int = 0
    pairs: list[list[tuple[Tensor, Tensor]]] = field(default_factory=list)
    compared: int = 0
    apart: int = 0

    def take(self, images: int, expected: object, given: object) -> None:
        """Take both outputs on one batch."""
        self.images += images
        both = [_numbers_in(output) for output in (expected, given)]
        for place, (one, other) in enumerate(zip_longest(*both)):
            if one is None or other is None or one.shape != other.shape:
                self.apart += 1
                continue
            self.compared += 1
            self.pairs += [[] for _ in range(place + 1 - len(self.pairs))]
            if one.numel():
                self.pairs[place].append((one.cpu(), other.cpu()))

    @property
    def not_compared(self) -> str:
        """Return what of the outputs could not be compared, "" where all of them could."""
        if not self.compared and not self.apart:
            return "the model's outputs hold no numbers; only its layers were compared"
        if self.apart:
            return (
                f"{self.apart} of {self.compared + self.apart} outputs have another shape in the "
                f"integer model, as where a threshold decides how many there are, and were not "
                f"compared"
            )
        return ""

    def judge(self, *, room: float) -> tuple[dict[str, float], str]:
        """Return the figures, of the output that agrees least, and why they are too bad, or ""."""
        if self.apart and not self.compared:
            return dict(NONE), "no output has the shape that it should have"
        worst = -1.0, dict(NONE), ""
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
            if rank > worst[0]:
                worst = rank, figures, why
        return worst[1], worst[2]

    def expects_as(self, other: "Outputs") -> bool:
        """Tell whether the same was expected on the batches that both have."""
        return all(
            torch.equal(mine, theirs)
            for one, another in zip(self.pairs, other.pairs, strict=False)
            for (mine, _), (theirs, _) in zip(one, another, strict=False)
        )

    @property
    def prove_little(self) -> bool:
        """Tell whether all that was expected is one value, or the same for every image."""
        if not any(self.pairs):
            return False
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


def _numbers_in(output: object) -> list[Tensor]:
    """Return the tensors of an output, or the plain number that it is."""
    if isinstance(output, bool | int | float):
        return [torch.tensor(output)]
    return list(tensors_in(output))


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
