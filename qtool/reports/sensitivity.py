"""sensitivity.json: what each layer's width costs, and which widths a budget chose."""

from pydantic import Field

from qtool.console import say, show, table
from qtool.reports.result import Result
from qtool.reports.words import number, percent, size


class AtWidth(Result):
    """What a layer, or several that share a weight, costs at a width."""

    bits: int
    bytes: int
    """Of the weight in the exported file, with what unpacks it."""
    loss_alone: float | None = None
    """Of the network with everything else in float; null where it was not measured."""
    error_alone: float | None = None
    """Of its output then: the mean square of its difference from the float network's, relative to
    the variance of that."""
    loss_with_rest: float | None = None
    """Of the network with the rest quantized as the recipe has it."""
    error_with_rest: float | None = None


class SensitiveLayer(Result):
    """A layer, or several that share a weight: at the recipe's width, and at others."""

    layer: str
    """Names with a comma between them, where several share a weight."""
    weights: int
    macs: int
    """Multiplications and additions for one image."""
    input_bits: int
    """Float counts 32."""
    bits: int
    """As the recipe has it."""
    said: bool
    """An override of the recipe says the width."""
    widths: list[AtWidth]


class CurvePoint(Result):
    """Widths for the whole network, and what they cost."""

    bits_mean: float
    """Over quantized weights."""
    bytes: int
    """Of quantized weights in the exported file."""
    bit_operations: int
    loss: float
    """Of the network with those widths, measured."""
    error: float
    """Of its output, measured."""
    accuracy: float | None
    widths: dict[str, int]
    """Layer -> bits."""
    uniform: bool
    """Every layer that may has the same width."""


class TriedWidths(Result):
    """A choice that was held against a budget."""

    by: str
    """What was minimised, or uniform."""
    reached: float
    """In the budget's unit."""
    within: bool
    loss: float | None = None
    """Measured; null where the choice is above the budget."""
    error: float | None = None


class ChosenWidths(Result):
    """Widths that a budget chose."""

    budget: dict[str, str | float]
    """As the recipe has it."""
    limit: float
    """Bytes, bits, bit-operations or milliseconds."""
    reached: float
    """In the same unit; of a size: of the file that was written for it."""
    file_bytes: int | None = None
    """Of the file that was written for a size."""
    bits_mean: float
    bit_operations: int
    loss: float
    error: float
    widths: dict[str, int]
    """Layer -> bits."""
    overrides: list[dict[str, object]]
    """As they stand in the resolved recipe."""
    tried: list[TriedWidths] = Field(default_factory=list)


class TriedDrop(Result):
    """Widths that were judged by images held out."""

    bits_mean: float
    bytes: int
    """Of quantized weights in the exported file."""
    accuracy: float
    within: bool


class MaxDrop(Result):
    """The smallest file that loses no more than so many points."""

    points: float
    """Of top-1 accuracy that may be lost."""
    images: int
    """Of the training data, held out, that judged."""
    accuracy_float: float
    accuracy: float
    file_bytes: int
    """Of the file that was written."""
    bits_mean: float
    widths: dict[str, int]
    """Layer -> bits."""
    overrides: list[dict[str, object]]
    """As they stand in the resolved recipe."""
    tried: list[TriedDrop]
    """The smallest first."""


class Sensitivity(Result):
    """sensitivity.json."""

    figures = ("layers",)

    recipe: str
    model: str
    data: str
    bits: list[int]
    """Widths that were measured."""
    images: int
    """Of the training data, those that calibrate; by so many all is measured."""
    loss_float: float
    """Of the float network on those images."""
    accuracy_float: float | None
    loss_quantized: float
    """Of the network as the recipe has it."""
    error_quantized: float
    layers: list[SensitiveLayer]
    curve: list[CurvePoint] = Field(default_factory=list)
    """What the least error at a mean of bits costs in loss, and what uniform widths do."""
    seconds: float
    chosen: ChosenWidths | None = None
    """Absent where the recipe has no budget."""
    max_drop: MaxDrop | None = None
    """Absent where it was not asked for."""
    report: str = ""
    """The page, where one was drawn."""


def show_sensitivity(result: Sensitivity) -> None:
    """Show each layer's loss and error at each width, and the curve."""
    alone = any(w.error_alone is not None for la in result.layers for w in la.widths)
    for title, named in (("alone", "error_alone"), ("with the rest", "error_with_rest")):
        if title == "alone" and not alone:
            continue
        loss_of = named.replace("error", "loss")
        columns = ["layer", "#weights", *(f"#{bits} bits" for bits in result.bits)]
        rows = []
        for layer in result.layers:
            at = {width.bits: width for width in layer.widths}
            cells = [_pair(at.get(bits), named, loss_of) for bits in result.bits]
            rows.append([layer.layer, f"{layer.weights:,}", *cells])
        heading = (
            "everything else in float" if title == "alone" else "the rest as the recipe has it"
        )
        show(table(f"error (loss), {heading}", columns, rows), on_stdout=True)
    if result.curve:
        show_curve(result)
    facts = [
        ("images", f"{result.images:,} of the training data"),
        ("loss in float", number(result.loss_float)),
        ("accuracy in float, on them", percent(result.accuracy_float)),
        ("loss as the recipe has it", number(result.loss_quantized)),
        ("error as the recipe has it", number(result.error_quantized)),
        ("seconds", f"{result.seconds:.1f}"),
        ("page", result.report),
    ]
    show(table(result.recipe, ["", ""], [fact for fact in facts if fact[1]]), on_stdout=True)
    if result.chosen is not None:
        show_chosen(result.chosen)


def show_curve(result: Sensitivity) -> None:
    """Show what widths for the whole network cost."""
    columns = ["widths", "#mean bits", "#weights in the file", "#loss", "#error", "#accuracy"]
    rows = []
    for point in sorted(result.curve, key=lambda each: (each.bits_mean, each.uniform)):
        used = sorted(set(point.widths.values()))
        words = "uniform" if point.uniform else f"chosen from {', '.join(map(str, used))}"
        rows.append(
            [
                words,
                f"{point.bits_mean:.2f}",
                size(point.bytes),
                number(point.loss),
                number(point.error),
                percent(point.accuracy),
            ]
        )
    show(table("widths for the whole network", columns, rows), on_stdout=True)


def show_chosen(chosen: ChosenWidths, *, on_stdout: bool = True) -> None:
    """Show which widths a budget chose."""
    rows = [[name, bits] for name, bits in chosen.widths.items()]
    asked = ", ".join(f"{kind}: {value}" for kind, value in chosen.budget.items())
    show(table(f"widths for budget {asked}", ["layer", "#bits"], rows), on_stdout=on_stdout)
    unit = next(iter(chosen.budget))
    reached = {
        "size": f"{chosen.reached:,.0f} of {chosen.limit:,.0f} bytes",
        "bits": f"{chosen.reached:.3f} of {chosen.limit:g} bits",
        "bitops": f"{chosen.reached:,.0f} of {chosen.limit:,.0f} bit-operations",
        "latency": f"{chosen.reached:.3f} of {chosen.limit:g} ms",
    }[unit]
    say(f"reached: {reached}; {chosen.bits_mean:.2f} bits a weight", on_stdout=on_stdout)


def say_chosen(chosen: ChosenWidths) -> None:
    """Say which widths a budget chose, beside the result of a command."""
    show_chosen(chosen, on_stdout=False)


def _pair(at: AtWidth | None, error: str, loss: str) -> str:
    if at is None or getattr(at, error) is None:
        return "-"
    return f"{number(getattr(at, error), 3)} ({number(getattr(at, loss), 3)})"
