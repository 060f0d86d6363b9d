"""A run's folder: the names of everything in it, and who may use it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from qtool.files.json_data import read_json, read_json_lines
from qtool.files.lock import OF_LOCKS, only_writer
from qtool.files.scratch import is_scratch
from qtool.files.whole import (
    refuse_unless_makeable,
    write_json_lines,
    write_text,
)
from qtool.reports.results import EpochLine, Summary
from qtool.reports.spreadsheets import metrics_csv
from qtool.runs.given import (
    RECIPE as RECIPE,  # of who knows the folder
)
from qtool.runs.given import refuse_no_onnx_file, refuse_no_run, refuse_no_source_of_export
from qtool.settings.user_code import UserCode

INTEGER = "integer.safetensors"
CONVERT = "convert.json"
ONNX = "model.onnx"
EXPORT = "export.json"
REPORT = "report.html"
SENSITIVITY = "sensitivity.json"
OVERRIDES = "overrides.yaml"
PARTS = "part_sources"  # in environment.json: of the user's own files and modules
USUAL_TARGET = "onnxruntime"
Story = Literal["train", "run"]  # command that trains, alone or before it converts and exports


@dataclass(frozen=True)
class RunFolder:
    """A folder that a run lies in, or may lie in; nothing is read or made until it is asked for.

    Attributes:
        path: of the folder.
        option: of the command line that chooses another one, for messages.
    """

    path: Path
    option: str = field(default="--run-dir", compare=False)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / RECIPE

    @property
    def environment(self) -> Path:
        """What the numbers depend on beside the recipe."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """One line for each epoch."""
        return self.path / "metrics.jsonl"

    @property
    def metrics_csv(self) -> Path:
        """The same, for spreadsheets."""
        return self.path / "metrics.csv"

    @property
    def report(self) -> Path:
        """The page on the run, for people."""
        return self.path / REPORT

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on."""
        return self.path / "checkpoint.pt"

    @property
    def best(self) -> Path:
        """The network after the epoch that did best on the images held out."""
        return self.path / "best.pt"

    @property
    def weights(self) -> Path:
        """The trained network's weights in float, for other tools."""
        return self.path / "model.safetensors"

    @property
    def answers(self) -> Path:
        """What the trained network says of each validation image."""
        return self.path / "validation.npz"

    @property
    def resume_command(self) -> str:
        """What goes on with the training, by the copies that it keeps of the user's files."""
        return self.command_to_go_on("train")

    def command_to_go_on(self, story: Story) -> str:
        """Return what goes on with a story of qtool's that was stopped."""
        copies = [label for label in self.kept_digests() or () if label.endswith(".py")]
        more = " --run-code" if copies else ""
        return f"qtool {story} {self.recipe} --run-dir {self} --resume{more}"

    def kept_digests(self) -> dict[str, str] | None:
        """Return file or module -> SHA-256 of the user's own code that the run was trained with.

        None where the folder does not say it.

        Raises:
            InputError: If what it says is damaged.
        """
        if not self.environment.is_file():
            return None
        said = read_json(self.environment)
        kept, parts = said.get("estimator_sources"), said.get(PARTS)
        if not isinstance(kept, dict):
            return None
        found = {str(k): str(v) for k, v in kept.items()}
        for label, source in parts.items() if isinstance(parts, dict) else ():
            found[str(label)] = str(source.get("sha256")) if isinstance(source, dict) else ""
        return found

    def code(self, *, run_copies: bool) -> UserCode:
        """Return where the own code of the run's recipe is looked for, and which may run.

        Args:
            run_copies: what the folder keeps may, and what is installed.
        """
        code = UserCode.of_run(self.path, self.kept_digests(), run_copies=run_copies)
        return replace(code, lay_in=self._places())

    def _places(self) -> dict[str, str]:
        """Return module -> folder in which it lay when the run was trained."""
        parts = read_json(self.environment).get(PARTS) if self.environment.is_file() else None
        kept = parts.items() if isinstance(parts, dict) else ()
        found = {str(k): v.get("folder") for k, v in kept if isinstance(v, dict)}
        return {k: v for k, v in found.items() if isinstance(v, str) and v}

    @property
    def summary(self) -> Path:
        """How far the run is, and how it does."""
        return self.path / "summary.json"

    @property
    def integer(self) -> Path:
        """The integer model."""
        return self.path / INTEGER

    @property
    def integer_of_best(self) -> Path:
        """The integer model of that network."""
        return self.integer.with_name(f"{self.integer.stem}.best{self.integer.suffix}")

    def integer_for(self, target: str) -> Path:
        """The integer model of a target that needs one of its own."""
        return self.path / f"{self.integer.stem}.{target}{self.integer.suffix}"

    @property
    def convert(self) -> Path:
        """The report on the integer model."""
        return self.path / CONVERT

    @property
    def onnx(self) -> Path:
        """The exported file."""
        return self.path / ONNX

    @property
    def export(self) -> Path:
        """The report on the exported file."""
        return self.path / EXPORT

    @property
    def sensitivity(self) -> Path:
        """What each layer's width costs, and which widths a budget chose."""
        return self.path / SENSITIVITY

    @property
    def overrides(self) -> Path:
        """The widths that a budget chose, as a part of a recipe."""
        return self.path / OVERRIDES

    @property
    def initial(self) -> Path:
        """M(w0), where a straight-through equivalent starts from it."""
        return self.path / "initial.safetensors"

    @property
    def changes(self) -> Path:
        """The folder of what the weights' codes did."""
        return self.path / "changes"

    def is_free(self) -> bool:
        """Tell whether the folder is absent or empty, but for what a killed write left."""
        if not self.path.exists():
            return True
        return all(is_scratch(c) or c.name in OF_LOCKS for c in self.path.iterdir())

    def holds_run(self) -> bool:
        """Tell whether the folder was made by `qtool train` or `qtool convert`."""
        return self.path.is_dir() and self.recipe.is_file()

    def refuse_unless_run(self) -> None:
        """Check that the folder was made by `qtool train` or `qtool convert`.

        Raises:
            InputError: If it was not.
        """
        refuse_no_run(self.path)

    def refuse_unless_makeable(self) -> None:
        """Check that the folder is there or can be made, without making it.

        Raises:
            InputError: If it cannot.
        """
        refuse_unless_makeable(self.path)

    def finished_summary(self) -> Summary | None:
        """Return the summary of a run that is finished, else None.

        Raises:
            InputError: If it is damaged.
        """
        if not self.summary.is_file():
            return None
        said = read_json(self.summary)
        return Summary.of(said, self.summary) if said.get("status") == "finished" else None

    def history(self) -> list[EpochLine]:
        """Return the lines of metrics.jsonl.

        Raises:
            InputError: If it is missing or damaged.
        """
        return [EpochLine.of(line, self.metrics) for line in read_json_lines(self.metrics)]

    def write_metrics(self, history: Sequence[EpochLine]) -> None:
        """Write metrics.jsonl, one line for each epoch, and the same as metrics.csv."""
        write_json_lines(self.metrics, [line.to_json() for line in history])
        write_text(self.metrics_csv, metrics_csv(history))


def only_writer_of(path: Path) -> AbstractContextManager[None]:
    """Be the only process that writes in the run folder that a file goes to, if it is one.

    Raises:
        InputError: If another process writes there.
    """
    folder = RunFolder(path.parent)
    return only_writer(folder.path) if folder.holds_run() else nullcontext()


def report_beside(path: Path, report: str) -> Path:
    """Return where the report on a file goes, so that two files in a folder keep two reports."""
    usual = ONNX if report == EXPORT else INTEGER
    return path.with_name(report if path.name == usual else f"{path.stem}.{report}")


def places_of_export(
    source: Path, output: Path | None, target: str = USUAL_TARGET
) -> tuple[Path, Path]:
    """Return where a file that is made of a run or an integer model goes, and its report.

    In a run's folder the file for the usual target is model.onnx, with its report in export.json,
    and others are named after theirs. Any other file NAME.onnx has its report in NAME.export.json.

    Raises:
        InputError: If there is no such source, or nothing can be written there.
    """
    refuse_no_source_of_export(source)
    in_run = source.is_dir()
    path = output or (RunFolder(source).onnx if in_run else source.with_suffix(".onnx"))
    usual = target == USUAL_TARGET
    if output is None and not usual:
        path = path.with_name(f"{path.stem}.{target}{path.suffix}")
    refuse_no_onnx_file(path)
    of_the_run = in_run and path.resolve() == RunFolder(source).onnx.resolve()
    plain = output is None or of_the_run
    return path, report_beside(path, EXPORT) if plain else path.with_name(f"{path.stem}.{EXPORT}")
