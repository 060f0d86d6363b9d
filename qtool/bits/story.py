"""The story of `qtool sensitivity`: recipe -> what each width costs -> a page, and the choice."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qtool.bits.budget import Chooser
from qtool.bits.by_file import Files, choose_widths
from qtool.bits.sensitivity import measure
from qtool.bits.subject import built_subject
from qtool.bits.told import curve_of, told, write_overrides
from qtool.console import say
from qtool.errors import InputError
from qtool.files.scratch import scratch
from qtool.files.whole import make_folder, refuse_unless_makeable, write_text
from qtool.problems import report
from qtool.reports.pages.sensitivity import sensitivity_page
from qtool.reports.sensitivity import Sensitivity
from qtool.runs.access import Access
from qtool.runs.built import build
from qtool.runs.kept.folder import OVERRIDES, REPORT, SENSITIVITY, RunFolder
from qtool.runs.machine import pick_device
from qtool.settings.quantization import WIDTHS

WIDTHS_SHOWN = (2, 3, 4, 8)


def sensitivity(
    recipe_path: Path,
    *,
    bits: Sequence[int] = WIDTHS_SHOWN,
    output: Path | None = None,
    assignments: list[str] | None = None,
    device: str = "auto",
    data_root: Path | None = None,
    run_code: bool = False,
) -> Sensitivity:
    """Recipe -> each layer's loss and error at each width -> sensitivity.json, a page, a choice.

    Raises:
        RecipeError: If the recipe is wrong, its weights are float or have no such width, or its
            budget is out of reach.
        InputError: If nothing can be written there.
        DataError: If its data or weights are missing or malformed.
    """
    begun = time.monotonic()
    folder = output or Path("runs") / f"{recipe_path.stem}-sensitivity"
    refuse_unless_makeable(folder)
    if RunFolder(folder).holds_run():
        raise InputError(f"{folder}: holds a run; choose another --output")
    access = Access.of(data_root, assignments, run_code=run_code).to_recipe(recipe_path)
    recipe = build.load_checked(recipe_path, access=access)
    budget, source = recipe.quantization.budget, str(recipe_path)
    place = pick_device(device)
    data = build.make_data(recipe, place, access.taken(recipe))
    subject = built_subject(recipe, data, place)
    if recipe.model.weights == "none":
        say("note: model.weights is none, so random weights are measured")
    widths = sorted({*bits, *(WIDTHS if budget is not None else ())})
    chosen_widths = {n: each for n, each in subject.widths(widths).items() if each}
    if not chosen_widths:
        why = "no layer's weights are quantized at one of the widths of --bits"
        raise report(source, [("quantization.weights", why)])
    made = subject.weights_at(chosen_widths)
    alone = measure(subject.model, subject.shown, chosen_widths, ["alone"], made)
    rest = measure(subject.improved, subject.shown, chosen_widths, ["rest"], made)
    measured = replace(alone, rest=rest.rest)
    shown = {pair: each for pair, each in measured.alone.items() if pair[1] in bits}
    chooser = Chooser(subject, source, measured=replace(measured, alone=shown), widths=bits)
    with scratch() as trials:
        curve = curve_of(chooser, Files(chooser, trials))
        chosen = None
        if budget is not None:
            chooser = Chooser(subject, source, measured=measured)
            chosen = choose_widths(chooser, budget, trials)
    result = told(
        subject, source, measured, curve=curve, chosen=chosen, seconds=time.monotonic() - begun
    )
    page = folder / REPORT
    result = result.model_copy(update={"report": str(page)})
    make_folder(folder)
    result.write(folder / SENSITIVITY)
    if chosen is not None:
        write_overrides(folder / OVERRIDES, chosen)
    write_text(page, sensitivity_page(result))
    return result
