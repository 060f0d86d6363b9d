"""How far a file in its runtime and its integer model agree, on the same inputs."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from qtool.errors import ExportError
from qtool.evaluation import accuracy_of, agreement, agreement_of_values, judge
from qtool.export.proof.gate import run_named
from qtool.export.targets.target import Session
from qtool.export.writing.names import named_inputs, named_outputs
from qtool.graph.inputs import Inputs
from qtool.reports.exports import Agreement, OutputAgreement

Pair = tuple[Tensor, Tensor]
TOP_CLASS = ("top1_agreement", "clear_share", "clear_agreement")


@dataclass(frozen=True)
class Compared:
    """How a file and its integer model agree.

    Attributes:
        agreement: of logits, or of the output that agrees least.
        outputs: each output's own figures.
        unproven: why they prove nothing, "" where they do.
        notes: how the outputs were compared, where they are no logits.
        reasons: output -> why it breaks the rule; only those that do.
        not_finite: outputs that hold what is no number.
        shown: the output that `agreement` is of.
        are_logits: there is one output, and it was compared by its top class.
        pairs: output -> what was expected and what was given, batch by batch.
    """

    agreement: Agreement
    outputs: dict[str, OutputAgreement]
    unproven: str
    notes: list[str]
    reasons: dict[str, str] = field(default_factory=dict)
    not_finite: frozenset[str] = frozenset()
    shown: str = ""
    are_logits: bool = False
    pairs: dict[str, list[Pair]] = field(default_factory=dict, repr=False)

    def named(self, output: str, why: str) -> str:
        """Return what is said of an output, with its name where it is not the only one."""
        return why if self.are_logits else f"{output}: {why}"

    def excusing(self, outputs: Iterable[str], notes: Iterable[str]) -> "Compared":
        """Return the same without what is said against some outputs."""
        left = {name: why for name, why in self.reasons.items() if name not in set(outputs)}
        said = "; ".join(self.named(name, why) for name, why in left.items())
        agreed = self.agreement.model_copy(update={"disagreement": said})
        return replace(self, agreement=agreed, reasons=left, notes=[*self.notes, *notes])

    def with_figures(self, figures: Mapping[str, Mapping[str, float]]) -> "Compared":
        """Return the same with more figures of outputs, by their names."""
        made = {n: o.model_copy(update=dict(figures.get(n, {}))) for n, o in self.outputs.items()}
        return replace(self, outputs=made)


@torch.no_grad()
def compare_outputs(
    session: Session, integer: nn.Module, batches: Iterable[tuple[object, Tensor]]
) -> Compared:
    """Run a file and its integer model on the same inputs; say how far they agree.

    Logits [N, classes] are compared by their top class, anything else as numbers: each output by
    the median, over images, of the largest difference.

    Raises:
        ExportError: If there is no image, or an output has another shape.
    """
    pairs: dict[str, list[Pair]] = {}
    labels: list[Tensor] = []
    for batch, found in batches:
        if not len(found):
            continue
        inputs = Inputs.of(batch)
        expected = named_outputs(inputs.call(integer))
        given = run_named(session, named_inputs(integer, inputs))
        for (name, value), made in zip(expected.items(), given.values(), strict=True):
            if value.shape != made.shape:
                shapes = f"{list(made.shape)}, and {list(value.shape)} in the integer model"
                raise ExportError(f"output {name} has the shape {shapes}")
            pairs.setdefault(name, []).append((value.cpu(), made))
        labels.append(found.cpu())
    if not sum(map(len, labels)):
        raise ExportError("there are no images to compare the file and the integer model on")
    return _compared(pairs, torch.cat(labels))


def _compared(pairs: dict[str, list[Pair]], labels: Tensor) -> Compared:
    """Return what pairs of outputs, expected and given, say."""
    figures = {name: agreement_of_values(values) for name, values in pairs.items()}
    outputs = {name: OutputAgreement.model_validate(f) for name, f in figures.items()}
    first = next(iter(pairs.values()))
    constant = all(_is_constant(values) for values in pairs.values())
    images = len(labels)
    if constant:
        unproven = "every image gives one and the same output, which says nothing about classes"
    else:
        unproven = "" if images > 1 else "one image was compared, which says little"
    notes: list[str] = []
    accuracies: dict[str, float | None] = {"accuracy_integer": None, "accuracy_runtime": None}
    given = {name: torch.cat([made.flatten() for _, made in v]) for name, v in pairs.items()}
    shown, are_logits = next(iter(pairs)), _are_logits(pairs, labels)
    if are_logits:
        expected, logits = (torch.cat([pair[side].float() for pair in first]) for side in (0, 1))
        accuracies = {
            "accuracy_integer": accuracy_of(expected, labels),
            "accuracy_runtime": accuracy_of(logits, labels),
        }
        worst = agreement(expected, logits)
        reasons = {shown: judge(worst, logits)}
        disagreement = reasons[shown]
    else:
        notes.append(
            f"{', '.join(pairs)}: no logits of one choice among classes, so compared as numbers"
        )
        reasons = {name: judge(figures[name], values) for name, values in given.items()}
        disagreement = "; ".join(f"{name}: {why}" for name, why in reasons.items() if why)
        shown = max(figures, key=lambda name: _distance(figures[name]))
        worst = figures[shown]
    ranked: dict[str, float | None] = {name: worst.get(name) for name in TOP_CLASS}
    if constant:
        ranked = dict.fromkeys(TOP_CLASS)
    agreed = Agreement.model_validate(
        {**worst, "images": images, **ranked, **accuracies, "disagreement": disagreement}
    )
    return Compared(
        agreed,
        outputs,
        unproven,
        notes,
        reasons={name: why for name, why in reasons.items() if why},
        not_finite=frozenset(name for name in given if _breaks(figures[name], given[name])),
        shown=shown,
        are_logits=are_logits,
        pairs=pairs,
    )


def _breaks(figures: Mapping[str, float], given: Tensor) -> bool:
    """Tell whether a number is missing in what was expected, or in what was given."""
    return not (math.isfinite(figures["sigma"]) and bool(torch.isfinite(given).all()))


def _are_logits(pairs: dict[str, list[Pair]], labels: Tensor) -> bool:
    """Tell whether there is one output, [N, classes], and labels that are classes."""
    outputs = [expected for values in pairs.values() for expected, _ in values]
    return (
        len(pairs) == 1
        and all(one.ndim == 2 and one.shape[1] > 1 for one in outputs)
        and not labels.is_floating_point()
        and labels.ndim == 1
    )


def _is_constant(values: list[Pair]) -> bool:
    """Tell whether all images, of which there are two or more, should give the same."""
    first = values[0][0]
    if not first.ndim or sum(len(expected) for expected, _ in values) < 2:
        return False
    return all(bool((expected == first[:1]).all()) for expected, _ in values)


def _distance(figures: Mapping[str, float]) -> float:
    """Return the median difference in standard deviations."""
    median = figures["median_abs_difference"]
    return median / figures["sigma"] if figures["sigma"] else median
