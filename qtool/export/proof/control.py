"""The gate's controls: how far a file's outputs move where nothing is wrong.

Where a file computes in float between roundings, the last bit of a sum decides now and then which
integer a value becomes, and a deep network makes more of it. Two runtimes of the same file then
differ, and so do the file and the integer model, though nothing is wrong. How much of that there is
in a file is seen from the file alone, in two ways:

- on the same inputs times 1 + 1e-5, which is a hundred times what float32 rounds by;
- without the runtime's optimizations, which sum in another order. An optimization can also be what
  is wrong (a bias that is rounded coarsely, sums that saturate), and then the outputs without it
  are right: so this control is no larger than what those differ from the integer model by.

An output disagrees where the rule of `qtool.evaluation` says so and it differs by more than three
times what its controls do.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qtool.evaluation import agreement_of_values
from qtool.export.proof.agreement import Compared, Pair
from qtool.export.proof.gate import run_named
from qtool.export.targets.target import Session
from qtool.export.writing.names import named_inputs
from qtool.graph.inputs import Inputs
from qtool.reports.exports import Agreement, Control, OutputAgreement
from qtool.reports.health import Finding

SCALED = 1 + 1e-5
IMAGES = 256  # a median needs no more
LEVEL_IMAGES = 64  # a file takes many times as long without optimizations
WORTH_SAYING = 1e-3  # of sigma: less than that is of no consequence
FAR = 3.0  # times the control, whose images are others and whose change is of another kind


@dataclass(frozen=True)
class Moved:
    """How far an output moves, in the median over images and of the image where it is most."""

    median: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, pairs: list[Pair]) -> "Moved":
        """Return how far pairs of values differ; nothing where one is not finite."""
        figures = agreement_of_values(pairs)
        found = cls(figures["median_abs_difference"], figures["max_abs_difference"])
        return found if math.isfinite(found.largest) else cls()

    def at_most(self, other: "Moved") -> "Moved":
        """Return the smaller of each figure."""
        return Moved(min(self.median, other.median), min(self.largest, other.largest))

    def at_least(self, other: "Moved") -> "Moved":
        """Return the larger of each figure."""
        return Moved(max(self.median, other.median), max(self.largest, other.largest))

    def explains(self, differs: OutputAgreement) -> bool:
        """Tell whether an output that differs by so much differs by no more than rounding may."""
        return (
            differs.median_abs_difference <= FAR * self.median
            and differs.max_abs_difference <= FAR * self.largest
        )


@dataclass(frozen=True)
class Controls:
    """What the controls say of each output.

    Attributes:
        report: as export.json has it; of several outputs, of the first.
        outputs: name -> the larger of both.
    """

    report: Control
    outputs: Mapping[str, Moved]


def controls_of(
    session: Session,
    plain: Session | None,
    integer: nn.Module,
    batches: Iterable[tuple[object, Tensor]],
    compared: Compared,
) -> Controls | None:
    """Run a file on its first images, scaled and without optimizations; None without images.

    Args:
        session: of the file.
        plain: of the same file, without the runtime's optimizations; None where there is none.
        integer: that it was made of, whose arguments name its inputs.
        batches: images and labels, as they were compared.
        compared: what the file and the integer model gave for them.
    """
    scaled: dict[str, list[Pair]] = {name: [] for name in compared.pairs}
    levels: dict[str, list[Pair]] = {name: [] for name in compared.pairs}
    exact: dict[str, list[Pair]] = {name: [] for name in compared.pairs}
    images = level_images = 0
    filled = ((batch, labels) for batch, labels in batches if len(labels))
    for index, (batch, labels) in enumerate(filled):
        inputs, rows = Inputs.of(batch), len(labels)
        for name, moved in run_named(session, _scaled(named_inputs(integer, inputs))).items():
            scaled[name].append((compared.pairs[name][index][1], moved))
        images += rows
        if plain is not None and level_images < LEVEL_IMAGES:
            taken = min(rows, LEVEL_IMAGES - level_images)
            given = named_inputs(integer, inputs.first(taken))
            for name, made in run_named(plain, given).items():
                expected, found = compared.pairs[name][index]
                levels[name].append((_first_of(found, taken, rows), made))
                exact[name].append((_first_of(expected, taken, rows), made))
            level_images += taken
        if images >= IMAGES:
            break
    if not images:
        return None
    first, moved = next(iter(scaled)), {name: Moved.of(pairs) for name, pairs in scaled.items()}
    report = Control(
        images=images,
        max_abs_difference=moved[first].largest,
        median_abs_difference=moved[first].median,
    )
    if not level_images:
        return Controls(report, moved)
    level = {name: Moved.of(levels[name]).at_most(Moved.of(exact[name])) for name in levels}
    said = {
        "level_images": level_images,
        "level_max_abs_difference": level[first].largest,
        "level_median_abs_difference": level[first].median,
    }
    larger = {name: moved[name].at_least(level[name]) for name in moved}
    return Controls(report.model_copy(update=said), larger)


def _first_of(values: Tensor, taken: int, rows: int) -> Tensor:
    """Return what belongs to the first images of a batch; windows have several rows each."""
    batched = values.ndim > 0 and len(values) % rows == 0
    return values[: len(values) * taken // rows] if batched else values


def _scaled(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs of which those that are float are a little larger."""
    return {name: x * SCALED if torch.is_floating_point(x) else x for name, x in given.items()}


def explained(agreed: Agreement, control: float | None) -> str:
    """Return what the control says of a disagreement, for its message; "" without a control.

    Args:
        agreed: of a file.
        control: the larger of both, in the median over images.
    """
    if control is None or not agreed.disagreement:
        return ""
    differs = agreed.median_abs_difference
    said = f"rounding moves the file's own outputs by {control:.3g} in the median"
    if differs > FAR * control:
        return f"{said}, and the two differ by {differs:.3g}: float rounding alone is not behind it"
    return f"{said}, but some images differ by more than rounding could"


def finding(agreed: Agreement, control: float | None) -> list[Finding]:
    """Return a finding where a file that agrees differs by more than its control explains."""
    if control is None or agreed.disagreement or not agreed.sigma:
        return []
    differs = agreed.median_abs_difference
    if differs <= max(FAR * control, WORTH_SAYING * agreed.sigma):
        return []
    says = (
        f"outputs differ from the integer model's by {differs:.3g} in the median, and rounding "
        f"moves them by {control:.3g} only: float rounding alone is not behind it"
    )
    return [Finding(layer="", kind="beyond_rounding", says=says)]
