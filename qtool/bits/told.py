"""What was measured and chosen, as sensitivity.json says it, and overrides as a file for people."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from qtool.bits.budget import Chooser
from qtool.bits.by_file import Files
from qtool.bits.sensitivity import Sensitivities
from qtool.bits.subject import Subject
from qtool.files.whole import write_text
from qtool.files.yaml_data import written_yaml
from qtool.reports.sensitivity import (
    AtWidth,
    ChosenWidths,
    CurvePoint,
    MaxDrop,
    SensitiveLayer,
    Sensitivity,
)

BETWEEN = 2  # means of bits on the curve between two widths


def told(
    subject: Subject,
    source: str,
    measured: Sensitivities,
    *,
    curve: Sequence[CurvePoint] = (),
    chosen: ChosenWidths | None = None,
    seconds: float,
) -> Sensitivity:
    """Return what sensitivity.json says.

    Args:
        subject: recipe, data and network.
        source: of the recipe.
        measured: what each width costs.
        curve: widths for the whole network.
        chosen: by a budget, where there is one.
        seconds: that all of it took.
    """
    pairs = measured.alone or measured.rest
    float_, recipe = subject.in_float, subject.as_the_recipe_says
    said = Sensitivity(
        recipe=source,
        model=subject.recipe.model.name,
        data=subject.recipe.data.name,
        bits=sorted({bits for _, bits in pairs}),
        images=subject.shown.images,
        loss_float=float_.loss,
        accuracy_float=float_.accuracy,
        loss_quantized=recipe.loss,
        error_quantized=recipe.error,
        layers=[
            _layer(subject, measured, number, group) for number, group in enumerate(measured.groups)
        ],
        curve=list(curve),
        seconds=round(seconds, 3),
    )
    return said if chosen is None else said.model_copy(update={"chosen": chosen})


def _layer(
    subject: Subject, measured: Sensitivities, number: int, group: Sequence[str]
) -> SensitiveLayer:
    """Return what is said of a group of layers."""
    costs = [subject.cost.layers[name] for name in group]
    rows = []
    for bits in (width for n, width in (measured.alone or measured.rest) if n == number):
        alone, rest = measured.alone.get((number, bits)), measured.rest.get((number, bits))
        settings = subject.widths([bits])
        row: dict[str, float | int] = {
            "bits": bits,
            "bytes": sum(cost.bytes_at(settings[cost.name][bits]).all for cost in costs),
        }
        if alone is not None:
            row |= {"loss_alone": alone.loss, "error_alone": alone.error}
        if rest is not None:
            row |= {"loss_with_rest": rest.loss, "error_with_rest": rest.error}
        rows.append(AtWidth.model_validate(row))
    return SensitiveLayer(
        layer=", ".join(group),
        weights=costs[0].weights,
        macs=sum(cost.macs for cost in costs),
        input_bits=max(cost.input_bits for cost in costs),
        bits=subject.base[group[0]].bits,
        said=group[0] in subject.said,
        widths=rows,
    )


def curve_of(chooser: Chooser, files: Files) -> list[CurvePoint]:
    """Return what the least error at some means of bits costs in loss, and each uniform width."""
    cost = chooser.subject.cost
    weights = sum(layer.weights for layer in cost.layers.values())
    priced = chooser.priced(lambda layer, at: (layer.weights * at.bits / weights, ""))
    by_bytes, found = files.priced(), list[CurvePoint]()

    def add(widths: dict[str, int], *, uniform: bool) -> None:
        if any(point.widths == widths and point.uniform >= uniform for point in found):
            return
        how = chooser.judged(widths)
        found.append(
            CurvePoint(
                bits_mean=cost.mean_bits(widths),
                bytes=round(by_bytes.of(widths)),
                bit_operations=cost.bit_operations(widths),
                loss=how.loss,
                error=how.error,
                accuracy=how.accuracy,
                widths=widths,
                uniform=uniform,
            )
        )

    uniform = list(priced.uniform())
    for _, widths in uniform:
        add(widths, uniform=True)
    means = sorted(priced.of(widths) for _, widths in uniform)
    for low, high in pairwise(means):
        for step in range(1, BETWEEN + 1):
            widths = priced.within(low + (high - low) * step / BETWEEN)
            if widths is not None:
                add(widths, uniform=False)
    return sorted(found, key=lambda point: (point.bits_mean, point.uniform))


def write_overrides(path: Path, chosen: ChosenWidths | MaxDrop) -> None:
    """Write the overrides that were chosen, to be read, edited and put into a recipe.

    Raises:
        WriteError: If they cannot be written there.
    """
    if isinstance(chosen, MaxDrop):
        asked = f"--max-drop {chosen.points:g}"
    else:
        said = ", ".join(f"{kind}: {value}" for kind, value in chosen.budget.items())
        asked = f"quantization.budget {{{said}}}"
    comment = (
        f"# widths for {asked}: {chosen.bits_mean:.3f} bits a weight\n"
        "# in the place of the budget, put them into a recipe before overrides of its own\n"
    )
    write_text(path, comment + written_yaml({"quantization": {"overrides": chosen.overrides}}))
