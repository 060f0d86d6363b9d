"""The commands of `qtool compare`: many runs, one verdict."""

from pathlib import Path
from typing import Annotated

import typer

from qtool.cli.completion import listed
from qtool.cli.first import look_at_finished, look_at_recipe
from qtool.cli.lists import looks_of, names_of, rates_of, seeds_of, windows_of
from qtool.cli.options import (
    ArmsCsv,
    AsJson,
    Assignments,
    Cluster,
    DataAssignments,
    DataRoot,
    Device,
    Explain,
    Figure,
    Jobs,
    Looks,
    Margin,
    NoReport,
    RunCode,
    Seeds,
    SeedsOrLooks,
    SharedRecipe,
    Threads,
    Tune,
    interruptible,
    present,
)
from qtool.cli.words import KeepCheckpoints, Match, OnSchedule, OnSide

compare_app = typer.Typer(
    no_args_is_help=True,
    help="Compare estimators, schedules, an estimator with its equivalent, or finished runs.",
)


@compare_app.command("estimators")
@interruptible
def compare_estimators(
    recipe: SharedRecipe,
    *,
    estimators: Annotated[
        str | None,
        typer.Option(
            "--estimators",
            help="Arms, as a,b,c; default: all of them.",
            autocompletion=listed("estimators"),
        ),
    ] = None,
    on: OnSide = None,
    arms: Annotated[
        list[str] | None,
        typer.Option("--arm", help="An arm as 'NAME: key=value, key=value'; may be repeated."),
    ] = None,
    tune: Tune = None,
    match: Match = None,
    explain: Explain = False,
    seeds: SeedsOrLooks = None,
    margin: Margin = 0.5,
    looks: Looks = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder; default: runs/NAME-estimators.")
    ] = None,
    assignments: Assignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    device: Device = "auto",
    jobs: Jobs = None,
    threads: Threads = None,
    keep: KeepCheckpoints = None,
    cluster: Cluster = None,
    no_report: NoReport = False,
    figure: Figure = None,
    csv_file: ArmsCsv = None,
    as_json: AsJson = False,
) -> None:
    """Train arms that differ in their gradient estimator only, seed by seed.

    Example: qtool compare estimators recipes/digits.yaml --estimators straight_through,identity
    """
    chosen = None if seeds is None else seeds_of(seeds)
    planned = None if looks is None else looks_of(looks)
    if arms and (estimators is not None or on is not None):
        excluded = "--estimators" if estimators is not None else "--on"
        raise typer.BadParameter(
            f"excludes {excluded}: each arm says how it differs", param_hint="--arm"
        )
    look_at_recipe(recipe, assignments, device=device)
    from qtool import pipeline
    from qtool.comparison.arms.fair import Fairness
    from qtool.comparison.report import Shown

    names = None if estimators is None else names_of(estimators)
    result = pipeline.compare_estimators(
        recipe,
        names=names,
        on=on,
        given=arms,
        fairness=Fairness(tune or (), match),
        explain=explain,
        seeds=chosen,
        output=output,
        assignments=assignments,
        device=device,
        data_root=data_root,
        run_code=run_code,
        jobs=jobs,
        threads=threads,
        keep=keep or "all",
        cluster=cluster,
        shown=Shown(not no_report, figure, csv_file),
        margin=margin,
        looks=planned,
    )
    present(result, as_json=as_json)
    if result.failed_trials:
        raise typer.Exit(1)


@compare_app.command("schedules")
@interruptible
def compare_schedules(
    recipe: SharedRecipe,
    *,
    schedules: Annotated[
        str | None,
        typer.Option(
            "--schedules",
            help="Arms, as a,b,c; default: the usual four.",
            autocompletion=listed("schedules"),
        ),
    ] = None,
    on: OnSchedule = "alpha",
    windows: Annotated[
        str | None,
        typer.Option("--windows", help="Shares of training, as 0-0.8,0-1: each schedule in each."),
    ] = None,
    tune: Tune = None,
    match: Match = None,
    explain: Explain = False,
    seeds: SeedsOrLooks = None,
    margin: Margin = 0.5,
    looks: Looks = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder; default: runs/NAME-schedules.")
    ] = None,
    assignments: Assignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    device: Device = "auto",
    jobs: Jobs = None,
    threads: Threads = None,
    keep: KeepCheckpoints = None,
    cluster: Cluster = None,
    no_report: NoReport = False,
    figure: Figure = None,
    csv_file: ArmsCsv = None,
    as_json: AsJson = False,
) -> None:
    """Train arms that differ in one schedule only: alpha's against the STE, or the learning rate's.

    Example: qtool compare schedules recipes/digits_blend.yaml --schedules linear,cubic --seeds 3
    """
    chosen = None if seeds is None else seeds_of(seeds)
    planned = None if looks is None else looks_of(looks)
    within = None if windows is None else windows_of(windows)
    look_at_recipe(recipe, assignments, device=device)
    from qtool import pipeline
    from qtool.comparison.arms.fair import Fairness
    from qtool.comparison.report import Shown

    names = None if schedules is None else names_of(schedules)
    result = pipeline.compare_schedules(
        recipe,
        names=names,
        on=on,
        windows=within,
        fairness=Fairness(tune or (), match),
        explain=explain,
        seeds=chosen,
        output=output,
        assignments=assignments,
        device=device,
        data_root=data_root,
        run_code=run_code,
        jobs=jobs,
        threads=threads,
        keep=keep or "all",
        cluster=cluster,
        shown=Shown(not no_report, figure, csv_file),
        margin=margin,
        looks=planned,
    )
    present(result, as_json=as_json)
    if result.failed_trials:
        raise typer.Exit(1)


@compare_app.command("equivalence")
@interruptible
def compare_equivalence(
    recipe: Annotated[Path, typer.Argument(help="Recipe with a fixed range of the weights.")],
    *,
    estimator: Annotated[
        str | None,
        typer.Option(
            "--estimator",
            help="Of the weights; default: the recipe's.",
            autocompletion=listed("estimators"),
        ),
    ] = None,
    learning_rates: Annotated[
        str | None,
        typer.Option("--learning-rates", help="As a,b,c; default: the recipe's x 4, 2, 1, 1/2."),
    ] = None,
    explain: Explain = False,
    seeds: Seeds = None,
    margin: Margin = 0.5,
    looks: Looks = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder; default: runs/NAME-equivalence.")
    ] = None,
    assignments: Assignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    device: Device = "auto",
    jobs: Jobs = None,
    threads: Threads = None,
    keep: KeepCheckpoints = None,
    cluster: Cluster = None,
    no_report: NoReport = False,
    figure: Figure = None,
    csv_file: ArmsCsv = None,
    as_json: AsJson = False,
) -> None:
    """Train with an estimator and with the STE it should be equal to, and see how far they part.

    Example: qtool compare equivalence recipes/digits.yaml --estimator sinusoidal --seeds 1
    """
    chosen = None if seeds is None else seeds_of(seeds)
    planned = None if looks is None else looks_of(looks)
    rates = None if learning_rates is None else rates_of(learning_rates)
    look_at_recipe(recipe, assignments, device=device)
    from qtool import pipeline
    from qtool.comparison.report import Shown

    result = pipeline.compare_equivalence(
        recipe,
        name=estimator,
        rates=rates,
        explain=explain,
        seeds=chosen,
        output=output,
        assignments=assignments,
        device=device,
        data_root=data_root,
        run_code=run_code,
        jobs=jobs,
        threads=threads,
        keep=keep or "all",
        cluster=cluster,
        shown=Shown(not no_report, figure, csv_file),
        margin=margin,
        looks=planned,
    )
    present(result, as_json=as_json)
    if result.failed_trials:
        raise typer.Exit(1)


@compare_app.command("runs")
@interruptible
def compare_runs(
    sources: Annotated[list[Path], typer.Argument(help="Run folders and ONNX files.")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for comparison.json.")
    ] = None,
    assignments: DataAssignments = None,
    data_root: DataRoot = None,
    run_code: RunCode = False,
    no_report: NoReport = False,
    figure: Figure = None,
    csv_file: ArmsCsv = None,
    as_json: AsJson = False,
) -> None:
    """Put finished runs and exported files side by side.

    Example: qtool compare runs runs/digits runs/digits/model.onnx
    """
    look_at_finished(sources)
    from qtool import pipeline
    from qtool.comparison.report import Shown

    result = pipeline.compare_runs(
        sources,
        output=output,
        assignments=assignments,
        data_root=data_root,
        run_code=run_code,
        shown=Shown(not no_report, figure, csv_file),
    )
    present(result, as_json=as_json)
