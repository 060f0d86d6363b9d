"""The check of a file that takes images of any height and width: in another size, too."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from qtool.export.proof.verdict import Batches, judged
from qtool.export.targets.target import Runtime
from qtool.export.writing.saved import read_back
from qtool.export.writing.sizes import RANKS, are_images, grown, in_another_size
from qtool.graph.inputs import Inputs
from qtool.reports.exports import OtherSizeReport

IMAGES = 64


def takes_other_sizes(path: Path) -> bool:
    """Tell whether a file says that a height or a width is open."""
    graph = read_back(path, tensors=False).graph
    sizes = [value.type.tensor_type.shape.dim for value in graph.input]
    return any(len(one) in RANKS and (one[-1].dim_param or one[-2].dim_param) for one in sizes)


def in_other_size(
    path: Path, integer: nn.Module, batches: Batches, runtime: Runtime
) -> OtherSizeReport | None:
    """Run a file and its integer model on the first images, enlarged; None where sizes are fixed.

    Raises:
        ExportError: If there is no image, or the file does not run.
        InputError: If the runtime cannot load the file.
    """
    if not takes_other_sizes(path):
        return None
    first, _ = next(iter(batches()))
    other = in_another_size(integer, Inputs.of(first))
    assert other.inputs is not None  # else the file's sizes were not open
    compared, _ = judged(path, integer, partial(_enlarged, batches, other.more), runtime)
    height, width = next(x.shape[-2:] for x in other.inputs.tensors if are_images(x))
    said = compared.agreement
    return OtherSizeReport(
        height=height,
        width=width,
        images=said.images,
        top1_agreement=said.top1_agreement,
        max_abs_difference=said.max_abs_difference,
        disagreement=said.disagreement and f"at {height} x {width}: {said.disagreement}",
    )


def _enlarged(batches: Batches, more: tuple[int, int]) -> Iterator[tuple[object, Tensor]]:
    """Yield the first images, larger, and their labels."""
    left = IMAGES
    found: Iterable[tuple[object, Tensor]] = batches()
    for batch, labels in found:
        taken = min(left, len(labels))
        yield grown(Inputs.of(batch).first(taken), more), labels[:taken]
        left -= taken
        if left <= 0:
            return
