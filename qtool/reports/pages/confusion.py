"""Which classes a network takes for which others."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qtool.reports.pages.tables import STRONGEST, Cell, Column, Table, plain

CLASSES = 20  # of a matrix; of more only those with the worst confusions are shown
WORST = 12  # confusions that are listed


@dataclass(frozen=True)
class Confusion:
    """A matrix, classes down and what they are taken for across, and the worst of it in words."""

    matrix: Table
    worst: Table | None
    told: str


def confusion(labels: Sequence[int], answers: Sequence[int], names: Sequence[str]) -> Confusion:
    """Return the confusions of a network.

    Args:
        labels: of the images.
        answers: what the network says they are.
        names: of the classes, in the order of labels; classes without one are called by their
            number.
    """
    seen = Counter(zip(labels, answers, strict=True))
    of = Counter(labels)

    def name(label: int) -> str:
        return names[label] if label < len(names) else str(label)

    wrong = [(many, pair) for pair, many in seen.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda each: (-each[0] / of[each[1][0]], -each[0], each[1]))
    classes = sorted(of.keys() | {answer for _, answer in seen})
    everything = len(classes) <= CLASSES
    if not everything:
        first = [label for _, pair in wrong for label in pair]
        classes = sorted(list(dict.fromkeys([*first, *classes]))[:CLASSES])
    rows = [
        [Cell(name(label)), *(_cell(seen[label, answer], of[label], right=label == answer)
                              for answer in classes)]
        for label in classes
    ]  # fmt: skip
    few = "" if everything else f", {CLASSES} of {len(of)} classes"
    matrix = Table(
        [Column("is \\ said"), *(Column(name(label)) for label in classes)],
        rows,
        f"images by class and answer{few}",
        "heat matrix",
    )
    listed = [
        (name(label), name(answer), many, f"{100 * many / of[label]:.1f} %")
        for many, (label, answer) in wrong[:WORST]
    ]
    columns = ["is", "taken for", "#images", "#of its class"]
    worst = plain(columns, listed, "the worst confusions") if listed else None
    total, right = len(labels), sum(seen[label, label] for label in of)
    return Confusion(matrix, worst, f"{right:,} of {total:,} images are right.")


def _cell(many: int, of: int, *, right: bool) -> Cell:
    if not many:
        return Cell("·", None, "none")
    share = many / max(1, of)
    return Cell(f"{many}", round(STRONGEST * share**0.5, 3), "right" if right else "")
