"""What every comparison that trains is asked, and what its arms share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import torch

from qtool.comparison.execution.kept_files import Keep
from qtool.comparison.execution.plan import About, Execution
from qtool.comparison.execution.trials import (
    ComparisonFolder,
    Kind,
    TrainTrial,
    Trial,
)
from qtool.comparison.explained import explanations
from qtool.comparison.forecast import say_forecast
from qtool.comparison.judged import (
    Judging,
    all_decided,
    looks_before,
    stages,
    summarize_trials,
)
from qtool.comparison.report import NOTHING, Shown
from qtool.comparison.statistics.equality import MARGIN
from qtool.errors import InputError
from qtool.files.lock import only_writer
from qtool.numerics.range_facts import Side
from qtool.problems import report
from qtool.recipe.places import at, section_at
from qtool.recipe.recipe import Recipe
from qtool.reports.comparisons import Comparison
from qtool.runs.access import Access
from qtool.runs.built import build
from qtool.runs.machine import pick_device
from qtool.settings.user_code import UserCode

SIDES: tuple[Side, ...] = ("weights", "activations")


class BatchOptions(TypedDict, total=False):
    """What may be said of every comparison that trains; see `ComparisonRequest`.

    `margin` is in points of accuracy, as the command line takes it.
    """

    seeds: int | list[int] | None
    output: Path | None
    assignments: list[str] | None
    device: str
    data_root: Path | None
    run_code: bool
    explain: bool
    jobs: int | None
    threads: int | None
    keep: Keep
    cluster: str | None
    shown: Shown
    margin: float
    looks: list[int] | None


@dataclass(frozen=True)
class ComparisonRequest:
    """A recipe, and how often, where and on what its arms are to be trained.

    Attributes:
        recipe: path of what all arms share.
        seeds: one trial of each arm for each; a number counts from the recipe's own seed on.
        output: folder of the comparison; None for the usual one.
        assignments: changes of the recipe, as `--set` writes them.
        device: that trials are trained on.
        data_root: folder of the data sets; None for the recipe's.
        run_code: copies of the user's files that a run folder keeps may run.
        execution: where trials are trained, and how many at once.
        shown: what is written beside comparison.json.
        judging: what counts as equal, and when the comparison is looked at.
        explain: look at coarse gradients and activations after each epoch.
    """

    recipe: Path
    seeds: int | list[int]
    output: Path | None
    assignments: list[str] | None
    device: torch.device
    data_root: Path | None = None
    run_code: bool = False
    execution: Execution = field(default_factory=Execution)
    shown: Shown = NOTHING
    judging: Judging = field(default_factory=Judging)
    explain: bool = False

    @classmethod
    def of(cls, recipe: Path, options: BatchOptions, *, seeds: int = 3) -> "ComparisonRequest":
        """Return the request that options make; `seeds` where they do not say how many.

        Raises:
            InputError: If there is no such device, trials cannot be trained or judged so, or what
                is to be shown cannot be written.
        """
        shown, looks = options.get("shown", NOTHING), tuple(options.get("looks") or ())
        shown.refuse_unless_writable()
        return cls(
            recipe,
            options.get("seeds") or (looks[-1] if looks else seeds),
            options.get("output"),
            options.get("assignments"),
            pick_device(options.get("device", "auto")),
            options.get("data_root"),
            options.get("run_code", False),
            Execution(
                options.get("jobs"),
                options.get("threads"),
                options.get("keep", "all"),
                options.get("cluster"),
            ),
            shown,
            Judging(options.get("margin", 100 * MARGIN) / 100, looks),
            options.get("explain", False),
        )

    @property
    def access(self) -> Access:
        """What the recipe may reach, and what the user says of it."""
        said = Access.of(self.data_root, self.assignments, run_code=self.run_code)
        return said.to_recipe(self.recipe)

    def folder(self, kind: str) -> ComparisonFolder:
        """Return the folder of a comparison of this kind, which need not be there yet."""
        return ComparisonFolder(self.output or Path("runs") / f"{self.recipe.stem}-{kind}")

    def usable_folder(self, kind: str) -> ComparisonFolder:
        """Return the folder of a comparison of this kind.

        Raises:
            InputError: If it cannot be made, or a run lies in it.
        """
        folder = self.folder(kind)
        folder.refuse_unless_usable()
        return folder


@dataclass(frozen=True)
class Base:
    """What the arms of a comparison share.

    Attributes:
        source: path of the recipe.
        data: its plain data, as the file and the assignments have them.
        recipe: the same, checked.
        seeds: one trial of each arm for each.
        code: where the user's own files are looked for, and which run.
        access: what the recipe may reach.
    """

    source: Path
    data: Mapping[str, object]
    recipe: Recipe
    seeds: list[int]
    code: UserCode
    access: Access


def read_base(request: ComparisonRequest) -> Base:
    """Return what the arms of a comparison share, checked also against its network.

    Raises:
        RecipeError: If the recipe is wrong; lists every problem.
    """
    source, seeds = request.recipe, request.seeds
    code = request.access.code_of(source)
    data, recipe = request.access.read(source, code)
    build.check_against_network(recipe, str(source))
    if recipe.quantization.budget is not None:
        why = (
            "each trial would choose widths of its own; run qtool sensitivity on this recipe, and "
            "take the overrides.yaml that it writes instead of the budget"
        )
        raise report(str(source), [("quantization.budget", why)])
    chosen = seeds if isinstance(seeds, list) else [recipe.seed + k for k in range(seeds)]
    return Base(source, data, recipe, chosen, code, request.access.taken(recipe))


def compare_arms(
    kind: Kind,
    on: str,
    request: ComparisonRequest,
    trials: Sequence[Trial],
    said_in: Callable[[Comparison], Comparison] = lambda result: result,
) -> Comparison:
    """Run every trial of a comparison; write comparison.json and return what it says.

    Args:
        kind: what the arms are.
        on: whose estimator, or which schedule, differs.
        request: where trials are trained, and on what.
        trials: in the order of their arms, and of their seeds within an arm.
        said_in: returns a result with what was done to the arms before.
    """
    folder = request.usable_folder(kind)
    with only_writer(folder.path), request.execution.started(trials) as execution:
        train = TrainTrial(
            request.device,
            request.access,
            keep=request.execution.keep,
            explains=request.explain,
        )
        about = About(kind, str(request.recipe), folder)
        planned = stages(trials, request.judging.looks)
        say_forecast(trials, execution, request.device, request.access, request.judging)
        for some in planned:
            outcomes = execution.outcomes_of(some, train, about)
            result = summarize_trials(
                outcomes,
                kind=kind,
                recipe=about.recipe,
                on=on,
                judging=request.judging,
                before=looks_before(folder.report),
            )
            more = {"explained": explanations(outcomes)}
            result = said_in(result).model_copy(update=more)
            result.write(folder.report)
            request.shown.write(result, folder)
            if len(some) == len(trials) or all_decided(result):
                return result
        raise AssertionError("the last look is at all trials")


def refuse_repeated(names: Sequence[str], option: str, what: str) -> None:
    """Check that no arm is named twice.

    Raises:
        InputError: If one is; names the option, and what the arms are.
    """
    if len(set(names)) < len(names):
        raise InputError(f"{option} {','.join(names)}: {what} is named twice")


def sections_of(data: object, side: Side) -> dict[str, dict[str, object]]:
    """Return a recipe's sections on weights or activations by where they stand, overrides' last."""
    overrides = at(data, "quantization.overrides")
    count = len(overrides) if isinstance(overrides, list) else 0
    owners = ["quantization", *(f"quantization.overrides.{index}" for index in range(count))]
    found = {f"{owner}.{side}": section_at(data, f"{owner}.{side}") for owner in owners}
    return {place: section for place, section in found.items() if section}


def rate_of(schedule: Mapping[str, object]) -> float:
    """Return the learning rate that a schedule is known by: where it starts."""
    values = schedule.get("values")
    first = values[0] if isinstance(values, list) else schedule.get("start", schedule.get("value"))
    return float(first) if isinstance(first, int | float) else 0.0
