"""What is shown of a comparison beside its comparison.json: a page, a figure, a spreadsheet."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qtool.comparison.execution.trials import ComparisonFolder
from qtool.errors import InputError
from qtool.files.json_data import read_json
from qtool.files.whole import refuse_unless_writable, write_text
from qtool.inspection.run_report import (
    estimators_of,
    pictured,
    unless_impossible,
    write_run_page,
)
from qtool.recipe.plain import read_recipe_file
from qtool.reports.comparisons import Comparison, Equivalence
from qtool.reports.results import Summary, read
from qtool.reports.spreadsheets import comparison_csv
from qtool.runs.access import OWN, Access
from qtool.runs.kept.folder import RunFolder
from qtool.runs.machine import command_given

RECIPES = 64  # arms whose recipes and pictures a page has at most


@dataclass(frozen=True)
class Shown:
    """What is to be written of a comparison beside its comparison.json.

    Attributes:
        page: report.html in the comparison's folder, where it has one.
        figure: a .pdf, .svg or .png of its main figure.
        table: a .csv of its arms.
    """

    page: bool = False
    figure: Path | None = None
    table: Path | None = None

    def refuse_unless_writable(self) -> None:
        """Check that files can be written where they are wanted, before any work is done.

        Raises:
            InputError: If one cannot, or a figure's name has another ending than it may.
        """
        if self.figure is not None:
            from qtool.reports.pages.drawing import refuse_unless_drawable

            refuse_unless_drawable(self.figure)
        if self.table is not None:
            refuse_unless_writable(self.table, "--csv names a file")

    def write(
        self,
        result: Comparison | Equivalence,
        folder: ComparisonFolder | None,
        sources: Sequence[Path] = (),
    ) -> None:
        """Write what is wanted.

        Args:
            result: what comparison.json says.
            folder: of the comparison; None where nothing is kept.
            sources: run folders and files that are compared, in the order of the arms, where they
                lie in no such folder.

        Raises:
            WriteError: If a figure or a spreadsheet cannot be written; that a page cannot is said.
        """
        if self.table is not None:
            write_text(self.table, comparison_csv(result))
        if self.figure is not None:
            from qtool.reports.pages.drawing import write_figure
            from qtool.reports.pages.papers import figure_of

            write_figure(*figure_of(result), self.figure)
        if self.page and folder is not None:
            with unless_impossible(folder.page):
                write_text(folder.page, page_of(result, folder, sources, command_given()))


NOTHING = Shown()


def write_page(source: Path, output: Path, access: Access = OWN) -> None:
    """Write the page on a run or a comparison, of its folder or of its comparison.json.

    Raises:
        InputError: If there is none, it is damaged, or not finished, or `output` is no page.
        WriteError: If the page cannot be written.
    """
    if output.suffix.lower() != ".html":
        raise InputError(f"{output}: not the name of a page; give one that ends in .html")
    refuse_unless_writable(output, "--output names an .html file")
    if is_comparison(source):
        folder = ComparisonFolder(source if source.is_dir() else source.parent)
        write_text(output, page_of(read_comparison(source), folder))
    elif source.is_dir():
        write_run_page(source, output, access=access)
    elif not source.exists():
        raise InputError(f"{source}: no such file or folder; give a run or a comparison")
    else:
        raise InputError(f"{source}: no page is made of it, but of runs and comparisons")


def is_comparison(source: Path) -> bool:
    """Tell whether a folder or a file holds what a comparison shows."""
    return (
        ComparisonFolder(source).report.is_file() if source.is_dir() else source.suffix == ".json"
    )


def read_comparison(source: Path) -> Comparison | Equivalence:
    """Return what the comparison.json of a folder, or a file of that kind, says.

    Raises:
        InputError: If there is none, it is damaged, or not finished.
    """
    path = ComparisonFolder(source).report if source.is_dir() else source
    result = read(path)
    if not isinstance(result, Comparison | Equivalence):
        raise InputError(f"{path}: not the report of a finished comparison")
    return result


def page_of(
    result: Comparison | Equivalence,
    folder: ComparisonFolder,
    sources: Sequence[Path] = (),
    command: str = "",
) -> str:
    """Return the page on a comparison, with as much as the folders of its trials tell."""
    from qtool.reports.pages.comparison import comparison_page
    from qtool.reports.pages.equivalence import equivalence_page
    from qtool.reports.pages.evidence import Evidence, TrialShown

    trials: list[TrialShown] = []
    recipes: dict[str, str] = {}
    environment: Mapping[str, object] = {}
    named: list[str] = []
    for arm, seed, run in _runs_of(result, folder, sources):
        summary, history = None, []
        with suppress(InputError):  # of a trial that failed anything may be missing
            summary = Summary.read(run.summary)
            history = run.history()
        trials.append(TrialShown(arm, seed, summary, history))
        with suppress(InputError, OSError, ValueError):
            if arm not in recipes and len(recipes) < RECIPES:
                recipes[arm] = run.recipe.read_text(encoding="utf-8")
                named += estimators_of(read_recipe_file(run.recipe))
            environment = environment or read_json(run.environment)
    said = environment.get("command")
    shown = Evidence(
        trials=trials,
        recipes=recipes,
        environment=environment,
        command=command or (said if isinstance(said, str) else ""),
        pictures=pictured(named),
    )
    if isinstance(result, Equivalence):
        return equivalence_page(result, shown)
    return comparison_page(result, shown)


def _runs_of(
    result: Comparison | Equivalence, folder: ComparisonFolder, sources: Sequence[Path]
) -> Iterator[tuple[str, int | None, RunFolder]]:
    """Yield arm, seed and folder of each run that is there; names lead nowhere else."""
    if result.kind == "runs":
        for arm, source in zip(result.arms, sources, strict=False):
            if RunFolder(source).holds_run():
                yield arm.name, None, RunFolder(source)
        return
    inside = folder.path.resolve()
    for arm in result.arms:
        for seed in result.seeds:
            run = folder.run(arm.name, seed)
            if run.path.resolve().is_relative_to(inside) and run.holds_run():
                yield arm.name, seed, run
