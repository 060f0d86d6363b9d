"""The stories qtool tells: train, convert, export, compare. Start here.

recipe -> loaders, float model -> prepare -> train -> checkpoint
-> convert -> integer model -> export -> ONNX, proven in the runtime; compare: runs -> a verdict,
whose stories are told in `comparison.stories`; what is done with a model that is there: `uses`
"""

from functools import partial
from pathlib import Path

from qtool.bits.chosen import Widths, widths_for_training
from qtool.bits.converted import WidthsToConvert, refuse_drop_of_run
from qtool.bits.story import sensitivity
from qtool.comparison.stories import (
    compare_equivalence,
    compare_estimators,
    compare_runs,
    compare_schedules,
)
from qtool.console import saying_once
from qtool.conversion.to_integer import convert as to_integer
from qtool.export.writing.ends import Ends
from qtool.export.writing.onnx_qdq import Ceil
from qtool.export.writing.request import Writing
from qtool.files.whole import json_after
from qtool.inspection.run_report import PageAtEnd
from qtool.reports.checks import WholeRun
from qtool.reports.exports import AllExports, Export, UnprovenExport
from qtool.reports.results import Conversion, StraightThrough, Summary
from qtool.runs.access import Access
from qtool.runs.built.build import load_checked
from qtool.runs.built.deal import refuse_differing, refuse_indivisible
from qtool.runs.converted.export import Exporter
from qtool.runs.converted.quantized import place_of_integer, quantized_from
from qtool.runs.given import refuse_nothing_to_resume, refuse_run_to_train, refuse_two_ways
from qtool.runs.kept.folder import CONVERT, Story, only_writer_of, report_beside
from qtool.runs.kept.place import AUTO, NextFree, claimed, named_folder
from qtool.runs.machine import pick_device
from qtool.runs.run import Run
from qtool.runs.train import train_run
from qtool.start.checked import check
from qtool.start.written import init
from qtool.stopping import held_back
from qtool.straight_through.run import convert_run
from qtool.world.forming import formed, own_device
from qtool.world.launched import launched

__all__ = [
    "check",
    "compare_equivalence",
    "compare_estimators",
    "compare_runs",
    "compare_schedules",
    "convert",
    "convert_to_straight_through",
    "export",
    "export_for_all",
    "init",
    "run",
    "sensitivity",
    "train",
]


def run(
    recipe_path: Path,
    *,
    run_dir: Path | NextFree | None = None,
    assignments: list[str] | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    target: str = "onnxruntime",
    data_root: Path | None = None,
    run_code: bool = False,
    report: bool = False,
) -> WholeRun:
    """Recipe -> `train` -> `convert` -> `export`, in one process; return what all three say."""
    Writing(target).runtime()  # before hours of training
    with saying_once():
        trained = train(
            recipe_path,
            run_dir=run_dir,
            assignments=assignments,
            device=device,
            resume=resume,
            overwrite=overwrite,
            data_root=data_root,
            run_code=run_code,
            report=report,
            story="run",
        )
        folder = Path(trained.run)
        # the user's own code has just run: what the folder keeps of it is the same
        converted = convert(folder, device=device, data_root=data_root, run_code=True)
        exported = export(folder, target=target, data_root=data_root, run_code=True)
    return WholeRun(run=str(folder), train=trained, convert=converted, export=exported)


def train(
    recipe_path: Path,
    *,
    run_dir: Path | NextFree | None = None,
    assignments: list[str] | None = None,
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    profile: bool = False,
    data_root: Path | None = None,
    run_code: bool = False,
    report: bool = False,
    story: Story = "train",
) -> Summary:
    """Recipe -> data, model -> fake quantizers -> training -> checkpoint, all by `train_run`."""
    refuse_two_ways(resume=resume, overwrite=overwrite, auto=run_dir == AUTO)
    there = None if overwrite else named_folder(run_dir, recipe_path)
    with formed(device) as world:
        with world.together():
            refuse_run_to_train(recipe_path, story)
            access = Access.of(data_root, assignments, run_code=run_code).to_recipe(recipe_path)
            code = access.code_of(recipe_path, there)
            recipe = load_checked(recipe_path, access=access, code=code)
            if resume and there is not None:
                refuse_nothing_to_resume(there.path)
            refuse_indivisible(recipe, world, str(recipe_path))
            place = pick_device(own_device(device))
        refuse_differing(recipe, world)
        again = launched().restarts > 0  # torchrun has started all processes again
        resume = resume or again
        with claimed(run_dir, recipe_path, world, overwrite=overwrite, again=again) as folder:
            widths = Widths(place, access.taken(recipe), str(recipe_path), trains=True)
            recipe = widths_for_training(recipe, folder, widths, world, resume=resume)
            run = Run(folder, recipe, place, access.taken(recipe), world, story=story)
            page = PageAtEnd(folder)
            summary = train_run(
                run,
                resume=resume,
                profile=profile,
                longer=resume,
                at_end=page.look if report else None,
                begins=partial(widths.write, folder.sensitivity, folder.overrides),
            )
    if report and world.first:
        page.write()
    return summary


def convert(
    source: Path,
    *,
    output: Path | None = None,
    device: str = "auto",
    no_saturation: bool = False,
    best: bool = False,
    method: str | None = None,
    max_drop: float | None = None,
    calibration_images: Path | None = None,
    assignments: list[str] | None = None,
    data_root: Path | None = None,
    run_code: bool = False,
) -> Conversion:
    """Run, or recipe with given weights -> integer model, proven; return what convert.json says."""
    refuse_drop_of_run(source, max_drop)
    access = Access.of(data_root, assignments, run_code=run_code)
    with only_writer_of(place_of_integer(source, output)):
        place = pick_device(device, converts=True)
        widths = WidthsToConvert(str(source), max_drop)
        given = quantized_from(
            source,
            output,
            place,
            access,
            best=best,
            method=method,
            no_saturation=no_saturation,
            images=calibration_images,
            chooses=widths.of,
        )
        saturation = "avoid" if no_saturation else "allow"
        integer = to_integer(given.model, given.proof_images(), saturation=saturation)
        report = widths.said_in(given.report(integer, avoids_saturation=no_saturation))
        with (  # a file and its report go together
            held_back(),
            json_after(report_beside(given.path, CONVERT), report.to_json()),
        ):
            given.keep(integer)
            widths.write()
        return report


def convert_to_straight_through(
    source: Path,
    *,
    output: Path | None = None,
    device: str = "auto",
    assignments: list[str] | None = None,
    data_root: Path | None = None,
    run_code: bool = False,
) -> StraightThrough:
    """Run with a custom estimator -> the straight-through run it is; return convert.json."""
    access = Access.of(data_root, assignments, run_code=run_code)
    return convert_run(source, output, pick_device(device, converts=True), access)


def export(
    source: Path,
    *,
    output: Path | None = None,
    target: str = "onnxruntime",
    batch: int | None = None,
    annotate: bool = True,
    ceil: Ceil = "exact",
    strict: bool = False,
    measure: bool = False,
    unproven: bool = False,
    preprocess: bool = False,
    softmax: bool = False,
    any_size: bool = False,
    assignments: list[str] | None = None,
    data_root: Path | None = None,
    run_code: bool = False,
) -> Export | UnprovenExport:
    """Run or integer model -> ONNX, run in the target's runtime; return what export.json says."""
    ends = Ends(preprocess, softmax)
    writing = Writing(
        target, batch, annotate, ceil, unproven=unproven, ends=ends, any_size=any_size
    )
    to_integers = partial(convert, assignments=assignments, data_root=data_root, run_code=run_code)
    access = Access.of(data_root, assignments, run_code=run_code)
    return Exporter(source, to_integers, access, strict=strict, measure=measure).to(output, writing)


def export_for_all(
    source: Path,
    *,
    output: Path | None = None,
    batch: int | None = None,
    annotate: bool = True,
    ceil: Ceil = "exact",
    strict: bool = False,
    measure: bool = False,
    unproven: bool = False,
    preprocess: bool = False,
    softmax: bool = False,
    any_size: bool = False,
    assignments: list[str] | None = None,
    data_root: Path | None = None,
    run_code: bool = False,
) -> AllExports:
    """Run or integer model -> one ONNX file for each target; return what each export.json says."""
    ends = Ends(preprocess, softmax)
    writing = Writing(
        batch=batch, annotate=annotate, ceil=ceil, unproven=unproven, ends=ends, any_size=any_size
    )
    to_integers = partial(convert, assignments=assignments, data_root=data_root, run_code=run_code)
    access = Access.of(data_root, assignments, run_code=run_code)
    exporter = Exporter(source, to_integers, access, strict=strict, measure=measure)
    return exporter.to_all(output, writing)
