"""What an export starts from becomes one file, or one for each target: written, proven, kept."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from qtool.console import say
from qtool.errors import ExportError, InputError, MissingRuntimeError, ModelError, QtoolError
from qtool.export.proof.damage import refuse_damaged
from qtool.export.proof.ends import Shown, ends_report
from qtool.export.proof.measure import export_report, refuse, unproven_report
from qtool.export.targets.target import TARGETS, Runtime
from qtool.export.writing.onnx_qdq import add_ends, write_onnx
from qtool.export.writing.request import Writing
from qtool.export.writing.saturation import refuse_saturating, saturating_layers
from qtool.export.writing.saved import bytes_of
from qtool.files.scratch import scratch
from qtool.files.whole import data_beside, json_after, unproven
from qtool.reports.exports import AllExports, Export, NotExported, UnprovenExport, WhyNot
from qtool.reports.results import ExportDescription
from qtool.runs.access import OWN, Access
from qtool.runs.converted.integer import Integer, integer_of, up_to_date_integer
from qtool.runs.given import refuse_no_model
from qtool.runs.kept.folder import (
    EXPORT,
    RunFolder,
    only_writer_of,
    places_of_export,
    report_beside,
)
from qtool.runs.kept.sound import why_not_fresh
from qtool.stopping import held_back

Convert = Callable[..., object]
"""Takes a run or recipe and, by keyword, `output` and `no_saturation`; `qtool.pipeline.convert`."""


def onnx_of(source: Path, folder: Path, convert: Convert, access: Access = OWN) -> Path:
    """Return an ONNX file itself, or one that a run or an integer model is written to.

    It is not proven: that is for `Exporter`.

    Args:
        source: ONNX file, run folder or integer model.
        folder: where the file goes; there is none of this name.
        convert: makes the integer model of a run.
        access: what the user says of the source.

    Raises:
        InputError: If there is no such source, or it is damaged.
    """
    refuse_no_model(source)
    if source.suffix == ".onnx":
        refuse_damaged(source)
        return source
    given = integer_of(source, convert, access)
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    write_onnx(given.model, given.data.first_images, path, Writing())
    return path


class Exporter:
    """A run or integer model, from which files are made."""

    def __init__(
        self,
        source: Path,
        convert: Convert,
        access: Access = OWN,
        *,
        strict: bool = False,
        measure: bool = False,
    ) -> None:
        """Take where to start.

        Args:
            source: run folder or integer model.
            convert: makes the integer model of a run.
            access: what the user says of the source.
            strict: check that nothing runs in float between quantized operators.
            measure: time what `--measure` does.
        """
        self.source, self.convert, self.access = source, convert, access
        self.strict, self.measure = strict, measure
        self._open: dict[Path, Integer] = {}

    def to(self, output: Path | None, writing: Writing) -> Export | UnprovenExport:
        """Write one file for one target, and prove it; return what its report says.

        Raises:
            InputError: If there is no such source, or it cannot be written for this target.
            ExportError: If the runtime disagrees; what was there under this name stays.
        """
        return self._made(*places_of_export(self.source, output, writing.target), writing)

    def _made(self, path: Path, report_path: Path, writing: Writing) -> Export | UnprovenExport:
        """Write and prove one file, and its report, as the only process that writes there."""
        with only_writer_of(path):
            return self._proven(path, report_path, writing)

    def _proven(self, path: Path, report_path: Path, writing: Writing) -> Export | UnprovenExport:
        runtime, _ = writing.runtime()
        given = self._integer(writing.target)
        writing = writing.saying(given.about(), given.usage)
        with ExitStack() as together, unproven(path) as trial:
            described = write_onnx(given.model, given.data.first_images, trial, writing)
            if runtime is None:
                if writing.ends:
                    add_ends(trial, trial, writing)
                report = unproven_report(trial, path, described, given.model)
            else:
                report = self._proof(
                    trial, path, described, given, writing=writing, runtime=runtime
                )
                try:
                    refuse(report, described, strict=self.strict)
                except ExportError:
                    report.write(report_path)
                    raise
            together.enter_context(held_back())  # the file and its report go together
            together.enter_context(json_after(report_path, report.to_json()))
        return report

    def _proof(
        self,
        trial: Path,
        path: Path,
        described: ExportDescription,
        given: Integer,
        *,
        writing: Writing,
        runtime: Runtime,
    ) -> Export:
        """Prove a file that is to go to `path`, and put what is wanted around its network."""
        report = export_report(trial, path, described, given.evidence(), measure=self.measure)
        if writing.ends and not report.disagreement:
            return _with_ends(report, trial, given, writing, runtime)
        return report

    def to_all(self, output: Path | None, writing: Writing) -> AllExports:
        """Write a file for every target: NAME.TARGET.onnx, and NAME.TARGET.export.json.

        Targets whose runtime is not installed are listed, as are those that cannot hold the model.

        Raises:
            InputError: If there is no such source, or nothing can be written there.
        """
        usual = places_of_export(self.source, output)[0]
        self._integer()
        made: dict[str, Export | UnprovenExport | NotExported] = {}
        for name in TARGETS.names():
            path = usual.with_name(f"{usual.stem}.{name}{usual.suffix}")
            say(f"exporting for {name}")
            try:
                report_path = report_beside(path, EXPORT)
                made[name] = self._made(path, report_path, writing.to(name))
            except QtoolError as error:
                made[name] = NotExported(error=str(error), kind=_kind_of(error))
        return AllExports(targets=made)

    def _integer(self, target: str = "onnxruntime") -> Integer:
        """Return the integer model that a target's file is made of.

        Where the runtime would saturate in some layer, that is one of its own in the run's folder,
        converted so that none does.

        Raises:
            InputError: If the runtime would saturate, and there is no run to convert anew.
        """
        given = self._opened(up_to_date_integer(self.source, self.convert))
        if TARGETS[target]().saturation != "seven_bits":
            return given
        saturating, title = saturating_layers(given.model), TARGETS[target]().library.title
        if not saturating:
            return given
        if not self.source.is_dir():
            try:
                refuse_saturating(saturating, title)
            except ModelError as error:
                own = self.source.with_suffix(f".{target}{self.source.suffix}")
                raise InputError(
                    f"{self.source}: {error}: qtool convert RUN --no-saturation --output {own}, or "
                    f"qtool export RUN --target {target}"
                ) from error
        folder = RunFolder(self.source)
        own = folder.integer_for(target)
        if why := why_not_fresh(folder, own):
            said = f"{own}: {why}; " if own.is_file() else ""
            say(f"{said}converting {self.source} with --no-saturation for {target}")
            start = self.source if folder.checkpoint.is_file() else folder.recipe
            self.convert(start, output=own, no_saturation=True)
        return self._opened(own)

    def _opened(self, path: Path) -> Integer:
        if path not in self._open:
            self._open[path] = Integer.open(path, self.access.to(self.source))
        return self._open[path]


def _with_ends(
    report: Export, trial: Path, given: Integer, writing: Writing, runtime: Runtime
) -> Export:
    """Put what is wanted before and behind a proven network, in place; return the report on it."""
    data = given.data
    batches = partial(data.validation.batches, 0)
    shown = Shown(given.model, batches, data.validation_pictures, data.preprocess)
    with scratch() as folder:
        alone = folder / trial.name
        for file in (trial, data_beside(trial)):
            if file.exists():
                shutil.move(file, folder / file.name)
        add_ends(alone, trial, writing)
        told = ends_report(alone, trial, writing.ends, shown, runtime)
    update = {
        "ends": told,
        "file_bytes": bytes_of(trial),
        "disagreement": told.disagreement,
    }
    return report.model_copy(update=update)


def _kind_of(error: QtoolError) -> WhyNot:
    if isinstance(error, MissingRuntimeError):
        return "not_installed"
    return "failed" if isinstance(error, ExportError) else "refused"
