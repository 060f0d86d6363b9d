"""The gate's control: what a file makes of an input that is nearly the same.

Where a file computes in float between roundings, the last bit of a sum decides now and then which
integer a value becomes, and a deep network makes more of it. Two runtimes of the same file then
differ, and so do the file and the integer model, though nothing is wrong. How much of that there is
in a file is seen from the file alone: the same inputs times 1 + 1e-5, which is a hundred times what
float32 rounds by.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from qtool.evaluation import agreement_of_values
from qtool.export.proof.gate import run_named
from qtool.export.targets.target import Session
from qtool.export.writing.names import named_inputs
from qtool.graph.inputs import Inputs
from qtool.reports.exports import Agreement, Control
from qtool.reports.health import Finding

SCALED = 1 + 1e-5
IMAGES = 256  # a median needs no more
WORTH_SAYING = 1e-3  # of sigma: less than that is of no consequence
FAR = 2.0  # times the control, whose images are others and whose change is of another kind


def control_of(
    session: Session, integer: nn.Module, batches: Iterable[tuple[object, Tensor]]
) -> Control | None:
    """Run a file on its first images, and on the same scaled by 1 + 1e-5; None without images.

    Args:
        session: of the file.
        integer: that it was made of, whose arguments name its inputs.
        batches: images and labels.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    images = 0
    for batch, labels in batches:
        if len(labels):
            given = named_inputs(integer, Inputs.of(batch))
            plain, moved = (_first(run_named(session, x)) for x in (given, _scaled(given)))
            pairs.append((plain, moved))
            images += len(labels)
        if images >= IMAGES:
            break
    if not pairs:
        return None
    figures = agreement_of_values(pairs)
    return Control(
        images=images,
        max_abs_difference=figures["max_abs_difference"],
        median_abs_difference=figures["median_abs_difference"],
    )


def _first(made: Mapping[str, Tensor]) -> Tensor:
    return next(iter(made.values()))


def _scaled(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return inputs of which those that are float are a little larger."""
    return {name: x * SCALED if torch.is_floating_point(x) else x for name, x in given.items()}


def explained(agreed: Agreement, control: Control | None) -> str:
    """Return what the control says of a disagreement, for its message; "" without a control."""
    if control is None or not agreed.disagreement:
        return ""
    moved, differs = control.median_abs_difference, agreed.median_abs_difference
    said = f"an input scaled by 1 + 1e-5 moves the file's own outputs by {moved:.3g} in the median"
    if differs > FAR * moved:
        return f"{said}, and the two differ by {differs:.3g}: float rounding alone is not behind it"
    return f"{said}: what runs in float between quantized operators may be behind it"


def finding(agreed: Agreement, control: Control | None) -> list[Finding]:
    """Return a finding where a file that agrees differs by more than its control explains."""
    if control is None or agreed.disagreement or not agreed.sigma:
        return []
    differs, moved = agreed.median_abs_difference, control.median_abs_difference
    if differs <= max(FAR * moved, WORTH_SAYING * agreed.sigma):
        return []
    says = (
        f"outputs differ from the integer model's by {differs:.3g} in the median, and an input "
        f"scaled by 1 + 1e-5 moves them by {moved:.3g} only: float rounding alone is not behind it"
    )
    return [Finding(layer="", kind="beyond_rounding", says=says)]
