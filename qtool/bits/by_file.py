"""Widths under a budget that only a file tells: its bytes, or the time that it takes.

A file is written for each choice that is tried, as `qtool export` writes it. What the model of a
size or a time is off by is taken into account, and the programme is asked again, until the file
itself is within the budget.
"""

from collections.abc import Mapping
from pathlib import Path

from qtool.bits.budget import BEST, Chooser, Priced, Widths
from qtool.bits.costs import LayerCost
from qtool.export.proof.latency import latencies
from qtool.export.targets.target import TARGETS
from qtool.export.writing.weight_sizes import WeightBytes
from qtool.reports.sensitivity import ChosenWidths
from qtool.settings.budget import Budget
from qtool.settings.tensors import WeightQuantization

SAID = 0.01  # of a file: what is saved where a recipe says the widths, and no overrides do
TRIES = 8  # files that are written for one choice
TARGET = "onnxruntime"


def choose_widths(chooser: Chooser, budget: Budget, folder: Path) -> ChosenWidths:
    """Return the widths that a budget chooses.

    Args:
        chooser: whose widths they are.
        budget: not to be exceeded.
        folder: where files are written that are tried.

    Raises:
        RecipeError: If no choice is within it, which says the least possible, or none is left.
    """
    chooser.refuse_nothing_free()
    cost = chooser.subject.cost
    if budget.kind == "bits":
        weights = sum(layer.weights for layer in cost.layers.values())

        def mean(layer: LayerCost, at: WeightQuantization) -> tuple[float, str]:
            return layer.weights * at.bits / weights, ""

        return chooser.by_sum(budget, mean, 0.0, "{:.4g} bits")
    if budget.kind == "bitops":

        def operations(layer: LayerCost, at: WeightQuantization) -> tuple[float, str]:
            return layer.bit_operations(at.bits), ""

        rest = float(cost.float_bit_operations)
        return chooser.by_sum(budget, operations, rest, "{:,.0f} bit-operations")
    files = Files(chooser, folder)
    return _by_size(files, budget) if budget.kind == "size" else _by_latency(files, budget)


class Files:
    """Files that are written for choices of widths, and what weights take in them."""

    def __init__(self, chooser: Chooser, folder: Path) -> None:
        """Take whose widths they are, and where files go."""
        self.chooser, self._folder = chooser, folder
        self._weights: dict[tuple[str, int], WeightBytes] = {}
        self._sizes: dict[tuple[int, ...], int] = {}

    def weight(self, layer: LayerCost, at: WeightQuantization) -> WeightBytes:
        """Return what a weight takes, each once measured."""
        key = layer.name, at.bits
        if key not in self._weights:
            self._weights[key] = layer.bytes_at(at)
        return self._weights[key]

    def priced(self, *, measured: bool = True) -> Priced:
        """Return what each group may have, at the bytes of its weights; see `Chooser.priced`."""

        def of(layer: LayerCost, at: WeightQuantization) -> tuple[float, str]:
            found = self.weight(layer, at)
            return found.all, found.form

        priced = self.chooser.priced(of, measured=measured)
        shared = {one.form: float(one.shared) for one in self._weights.values() if one.form}
        return Priced(priced.groups, priced.options, shared)

    def bytes_of(self, widths: Mapping[str, int]) -> int:
        """Return what the file for these widths takes.

        Where codes are to be trained, as many bytes come on top as codes could take that reach over
        more of their grids than now.
        """
        key = tuple(widths.values())
        if key not in self._sizes:
            chooser, layers = self.chooser, self.chooser.subject.cost.layers
            recipe = chooser.subject.with_widths(chooser.recipe_at(widths))
            count, described = chooser.subject.written(recipe, self._folder / "sized.onnx")
            if chooser.trains:
                whole = [self.weight(layers[n], chooser.at(n, bits)) for n, bits in widths.items()]
                now = sum(layer.packed_bytes for layer in described.layers)
                more = sum(weight.codes for weight in whole) - now
                tables = sum({weight.form: weight.shared for weight in whole}.values())
                count += max(0, more) + (max(0, tables - described.table_bytes) if more else 0)
            self._sizes[key] = count
        return self._sizes[key]

    def milliseconds_of(self, widths: Mapping[str, int]) -> float:
        """Return the median time of the file for these widths: one image, one thread."""
        chooser, path = self.chooser, self._folder / "timed.onnx"
        chooser.subject.written(chooser.subject.with_widths(chooser.recipe_at(widths)), path)
        image = chooser.subject.data.first_images[:1].cpu()
        (found,) = latencies([path], image, TARGETS[TARGET]().runtime)
        return float(found)


def _by_size(files: Files, budget: Budget) -> ChosenWidths:
    """Return the choice whose file has no more bytes than the limit."""
    chooser, limit = files.chooser, budget.limit
    cheapest = files.priced(measured=False).least()
    smallest = files.bytes_of(cheapest)
    if smallest > limit:
        raise chooser.out_of_reach(budget, f"{smallest:,} bytes")
    priced = files.priced()
    rest = smallest - priced.of(cheapest)
    candidates = [(BEST, _fitting(files, budget, priced, cheapest, rest))]
    for bits, uniform in priced.uniform():
        near = priced.of(uniform) <= limit * (1 + SAID) - rest
        if near and files.bytes_of(uniform) <= limit:
            candidates.append((f"uniform {bits} bits", uniform))
            break
    for by, each in candidates:
        chooser.note(budget, by, files.bytes_of(each), chooser.judged(each))
    best = min((each for _, each in candidates), key=lambda each: chooser.judged(each).error)
    reached = files.bytes_of(best)
    return chooser.result(budget, best, reached, file_bytes=reached)


def _fitting(files: Files, budget: Budget, priced: Priced, cheapest: Widths, rest: float) -> Widths:
    """Return the widths of the least error whose file is within a budget, as far as it was tried.

    What a file has beside its weights depends on the widths, which its recipe says; `rest` is what
    the cheapest has.
    """
    chooser, limit, found = files.chooser, budget.limit, cheapest
    for _ in range(TRIES):
        tried = priced.within(limit - rest) or cheapest
        if tried == found:
            break
        reached = files.bytes_of(tried)
        beside = reached - priced.of(tried)
        if reached <= limit:
            found, rest = tried, min(rest, beside)  # and now as much more as that leaves
        else:
            chooser.note(budget, BEST, reached)
            if found != cheapest:
                break
            rest = max(rest + 1, beside)
    return found


def _by_latency(files: Files, budget: Budget) -> ChosenWidths:
    """Return the choice whose file was seen to take no longer than the limit.

    Where the least error at any cost is within it, nothing else is timed. A layer's part in what a
    width costs is its share of all multiplications.
    """
    chooser, limit = files.chooser, budget.limit
    free = chooser.priced(lambda layer, at: (0.0, ""))
    if (best := free.within(1.0)) is not None:
        milliseconds = files.milliseconds_of(best)
        chooser.note(budget, BEST, milliseconds, chooser.judged(best))
        if milliseconds <= limit:
            return chooser.result(budget, best, milliseconds)
    uniform: dict[int, Widths] = dict(free.uniform())
    taken = {bits: files.milliseconds_of(widths) for bits, widths in uniform.items()}
    fastest = min(taken, key=lambda bits: taken[bits])
    rest = taken[fastest]
    if rest > limit:
        raise chooser.out_of_reach(budget, f"{rest:.3f} ms, as measured")
    macs = max(1, sum(layer.macs for layer in chooser.subject.cost.layers.values()))

    def of(layer: LayerCost, at: WeightQuantization) -> tuple[float, str]:
        return (taken.get(at.bits, rest) - taken[fastest]) * layer.macs / macs, ""

    priced, widths, reached = chooser.priced(of), uniform[fastest], rest
    for _ in range(TRIES):
        tried = priced.within(limit - rest)
        if tried is None:
            break
        milliseconds = files.milliseconds_of(tried)
        if milliseconds <= limit:
            widths, reached = tried, milliseconds
            break
        chooser.note(budget, BEST, milliseconds)
        rest += milliseconds - limit
    chooser.note(budget, BEST, reached, chooser.judged(widths))
    return chooser.result(budget, widths, reached)
