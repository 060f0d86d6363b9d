"""The page on sensitivity: what each layer's width costs, and which widths go together."""

from collections.abc import Iterator, Sequence

from qtool.reports.pages.drawing import ACCENT, WARN, for_page, named
from qtool.reports.pages.lines import RateLine, over_rates
from qtool.reports.pages.page import Plot, rendered
from qtool.reports.pages.tables import Heat, Table, heat_map, plain
from qtool.reports.sensitivity import AtWidth, CurvePoint, SensitiveLayer, Sensitivity
from qtool.reports.words import duration, number, percent, size


def sensitivity_page(result: Sensitivity) -> str:
    """Return the page on what widths cost."""
    given = {
        "title": f"Sensitivity of {result.model}",
        "kicker": f"qtool sensitivity · {result.recipe}",
        "question": f"What do fewer bits cost {result.model}?",
        "verdict": [],
        "facts": list(_facts(result)),
        "plots": _plots(result),
        "maps": list(_maps(result)),
        "layers": _layers(result),
        "chosen": _chosen(result),
    }
    return rendered("sensitivity.html", given)


def _facts(result: Sensitivity) -> Iterator[tuple[str, str]]:
    yield "layers", str(len(result.layers))
    yield "images", f"{result.images:,}"
    yield "loss in float", number(result.loss_float)
    yield "loss as the recipe has it", number(result.loss_quantized)
    if result.chosen is not None:
        yield "bits chosen", f"{result.chosen.bits_mean:.2f}"
    yield "time", duration(result.seconds)


def _plots(result: Sensitivity) -> list[Plot]:
    """Return the curve of widths for the whole network."""
    if len(result.curve) < 2:
        return []
    found = []
    for axis, unit in (("bits", "bits a weight"), ("bytes", "weights in the file, kB")):
        lines = [
            _line(name, [p for p in result.curve if p.uniform == uniform], colour, axis)
            for name, uniform, colour in (("chosen", False, ACCENT), ("uniform", True, WARN))
        ]
        drawn = over_rates(
            [line for line in lines if line.rates], f"loss by {unit}", logarithmic=True, unit=unit
        )
        told = "; ".join(map(_in_words, lines))
        found.append(
            Plot(named(for_page(*drawn, f"c{axis}"), f"loss by {unit}: {told}"), None, unit)
        )
    found[-1] = Plot(found[-1].figure, _curve_table(result), found[-1].title)
    return found


def _line(name: str, points: Sequence[CurvePoint], colour: str, axis: str) -> RateLine:
    held = sorted(points, key=lambda point: point.bits_mean)
    along = [point.bits_mean if axis == "bits" else point.bytes / 1e3 for point in held]
    return RateLine(name, along, [point.loss for point in held], colour)


def _in_words(line: RateLine) -> str:
    pairs = zip(line.rates, line.values, strict=True)
    return f"{line.name}: " + ", ".join(f"{x:.3g} {number(y)}" for x, y in pairs)


def _curve_table(result: Sensitivity) -> Table:
    rows = [
        (
            "uniform" if point.uniform else "chosen",
            f"{point.bits_mean:.2f}",
            size(point.bytes),
            number(point.loss),
            number(point.error),
            percent(point.accuracy),
        )
        for point in result.curve
    ]
    columns = ["widths", "#bits", "#in the file", "#loss", "#error", "#accuracy"]
    return plain(columns, rows, "widths for the whole network, measured")


def _maps(result: Sensitivity) -> Iterator[Table]:
    """Yield each layer's error at each width, coloured by its order of magnitude."""
    for figure, caption in (
        ("error_alone", "error of the output, everything else in float"),
        ("loss_alone", "loss, everything else in float"),
        ("error_with_rest", "error of the output, the rest as the recipe has it"),
        ("loss_with_rest", "loss, the rest as the recipe has it"),
    ):
        if any(getattr(width, figure) is not None for la in result.layers for width in la.widths):
            columns = [_heat(result.layers, bits, figure) for bits in result.bits]
            yield heat_map("layer", [layer.layer for layer in result.layers], columns, caption)


def _heat(layers: Sequence[SensitiveLayer], bits: int, figure: str) -> Heat:
    found = [_value(layer.widths, bits, figure) for layer in layers]
    ends = [_value(la.widths, w.bits, figure) for la in layers for w in la.widths]
    known = [value for value in ends if value is not None]
    return Heat(
        f"{bits} bits",
        found,
        [number(value, 3) for value in found],
        least=min(known),
        most=max(known),
    )


def _value(widths: Sequence[AtWidth], bits: int, figure: str) -> float | None:
    at = [width for width in widths if width.bits == bits]
    return getattr(at[0], figure) if at else None


def _layers(result: Sensitivity) -> Table:
    chosen = {} if result.chosen is None else result.chosen.widths
    rows = [
        (
            layer.layer,
            f"{layer.weights:,}",
            f"{layer.macs:,}",
            layer.input_bits,
            f"{layer.bits}{', said' if layer.said else ''}",
            chosen.get(layer.layer.split(", ")[0], "-"),
        )
        for layer in result.layers
    ]
    columns = ["layer", "#weights", "#macs", "#bits of input", "#bits in the recipe", "#chosen"]
    return plain(columns, rows)


def _chosen(result: Sensitivity) -> list[str]:
    """Return what a budget came to, in sentences."""
    if result.chosen is None:
        return []
    chosen = result.chosen
    (kind, value), reached = next(iter(chosen.budget.items())), chosen.reached
    words = {
        "size": f"{reached:,.0f} of {chosen.limit:,.0f} bytes, in the file that was written",
        "bits": f"{reached:.4g} of {chosen.limit:g} bits a weight",
        "bitops": f"{reached:,.0f} of {chosen.limit:,.0f} bit-operations",
        "latency": f"{reached:.3f} of {chosen.limit:g} ms",
    }[kind]
    return [
        f"The budget {kind}: {value} is met with {words}.",
        f"The loss is then {number(chosen.loss)}, the error {number(chosen.error)}.",
    ]
