"""The smallest file whose top-1 on images that are held out is within some points of float.

Those images are training images that neither calibrate nor judge anything else. Budgets in bytes
are halved between the least and the most there is; what is taken is as good as was asked for, and
was judged itself. Accuracy need not fall evenly with bytes, so that a smaller file may have passed
unseen.
"""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from qtool.bits.budget import Chooser, Widths
from qtool.bits.by_file import Files
from qtool.console import say
from qtool.errors import ConversionError, RecipeError
from qtool.evaluation import evaluate
from qtool.reports.sensitivity import MaxDrop, TriedDrop

ENOUGH = 0.01  # of the bytes: budgets that lie closer together are one
MOST = 12  # budgets that are tried

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def smallest_within(chooser: Chooser, files: Files, points: float, judged_by: Batches) -> MaxDrop:
    """Return the widths of the smallest file within so many points of the float network.

    Args:
        chooser: whose widths they are.
        files: that are written for choices.
        points: of top-1 accuracy that may be lost.
        judged_by: returns the images held out, and their labels, anew.

    Raises:
        ConversionError: If no choice is as accurate.
        RecipeError: If labels are no classes, or every width is said.
    """
    chooser.refuse_nothing_free()
    subject, priced = chooser.subject, files.priced()

    def accuracy_of(model: nn.Module) -> tuple[float, int]:
        found = evaluate(model, judged_by(), subject.shown.loss)
        if found.accuracy is None:
            raise RecipeError(f"{chooser.source}: --max-drop: labels are no classes")
        return found.accuracy, found.images

    in_float, images = accuracy_of(subject.network)
    tried: dict[tuple[int, ...], TriedDrop] = {}

    def try_(widths: Widths) -> TriedDrop:
        key = tuple(widths.values())
        if key not in tried:
            recipe = subject.with_widths(chooser.recipe_at(widths))
            accuracy, _ = accuracy_of(subject.quantized(recipe))
            mean = subject.cost.mean_bits(widths)
            within = 100 * (in_float - accuracy) <= points + 1e-9
            size = round(priced.of(widths))
            tried[key] = TriedDrop(bits_mean=mean, bytes=size, accuracy=accuracy, within=within)
            lost = f"{100 * (in_float - accuracy):.2f} points lost"
            say(f"{mean:.2f} bits a weight: {100 * accuracy:.2f} %, {lost}")
        return tried[key]

    widest, cheapest = _widest(chooser), priced.least()
    if not try_(widest).within:
        lost = 100 * (in_float - tried[tuple(widest.values())].accuracy)
        raise ConversionError(
            f"{chooser.source}: --max-drop {points:g}: the widest widths lose {lost:.2f} points of "
            f"{100 * in_float:.2f} % on {images:,} images held out; allow more points, or say "
            "other ranges or activations"
        )
    best, low, high = widest, priced.of(cheapest), priced.of(widest)
    if try_(cheapest).within:
        best, high = cheapest, low
    while high - low > ENOUGH * high and len(tried) < MOST:
        middle = priced.within((low + high) / 2)
        if middle is None:
            break
        if try_(middle).within:
            best, high = middle, min(priced.of(middle), (low + high) / 2)
        else:
            low = (low + high) / 2
    return MaxDrop(
        points=points,
        images=images,
        accuracy_float=in_float,
        accuracy=tried[tuple(best.values())].accuracy,
        file_bytes=files.bytes_of(best),
        bits_mean=subject.cost.mean_bits(best),
        widths=dict(best),
        overrides=subject.overrides(chooser.recipe_at(best)),
        tried=sorted(tried.values(), key=lambda one: one.bytes),
    )


def _widest(chooser: Chooser) -> Widths:
    """Return the widest width of each layer."""
    found: Mapping[str, Mapping[int, object]] = chooser.settings
    base, said = chooser.subject.base, chooser.subject.said
    return {n: base[n].bits if n in said else max(each) for n, each in found.items()}
