"""Results as tables for people; the same figures stand in the JSON files."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from qtool.console import say, show, table, warn
from qtool.reports.benchmarks import Benchmark, show_benchmark
from qtool.reports.checks import Check, WholeRun, show_check, show_whole_run
from qtool.reports.comparisons import Comparison, Difference, Equivalence
from qtool.reports.explanations import show_explained
from qtool.reports.export_table import show_all_exports, show_export, show_unproven, warnings_of
from qtool.reports.exports import AllExports, Export, UnprovenExport
from qtool.reports.fair_words import accuracy_sentences, fair_sentences
from qtool.reports.health import show_health
from qtool.reports.inspections import EstimatorTable, Inspection, PlanRow, SiteRow
from qtool.reports.predictions import Prediction, show_prediction
from qtool.reports.result import Result
from qtool.reports.results import Conversion, Profile, StraightThrough, Summary
from qtool.reports.saturation import sentence_on
from qtool.reports.sensitivity import Sensitivity, show_sensitivity
from qtool.reports.site_tables import show_sites
from qtool.reports.words import number, percent, size

HOW = ("how weights", "how input")  # columns that mostly hold the same words in every row


def show_result(result: Result) -> None:
    """Show any result that has a face here, by its type."""
    if isinstance(result, Comparison) and result.kind == "runs":
        show_runs(result)
    else:
        _FACES[type(result)](result)
    warn_of(result)


def warn_of(result: Result) -> None:
    """Say loudly, on standard error, what of a result must not be overlooked."""
    compared = isinstance(result, Comparison | Equivalence)
    for warning in [*warnings_of(result), *(result.failed_trials if compared else ())]:
        warn(str(warning))


def show_plan(rows: Sequence[PlanRow], sites: Sequence[SiteRow] = ()) -> None:
    """Show what happens to each layer, and to each value; what most share is said once."""
    weights_how = _most_common([row.weights_how for row in rows])
    activations_how = _most_common([row.activations_how for row in rows])
    cells = []
    for row in rows:
        notes = [row.why, row.note]
        if row.weights_how not in ("", weights_how):
            notes.append(f"weights: {row.weights_how}")
        if row.activations_how not in ("", activations_how):
            notes.append(f"input: {row.activations_how}")
        note = "; ".join(filter(None, notes))
        cells.append((row.name, "x".join(map(str, row.shape)), row.weights, row.activations, note))
    columns = ["layer", "weight", "weights", "input", "note"]
    if not any(cell[-1] for cell in cells):
        columns, cells = columns[:-1], [cell[:-1] for cell in cells]
    show(table("plan", columns, cells))
    for side, how in (("weights", weights_how), ("inputs", activations_how)):
        if how:
            say(f"{side}: {how}" + (", unless noted" if len(columns) == 5 else ""))
    could = [row.name for row in rows if row.may_saturate]
    if saturation := sentence_on(could, in_a_file=False):
        say(saturation)
    show_sites(sites)


def _most_common(texts: list[str]) -> str:
    """Return the text that stands most often, empty ones left out."""
    counts = Counter(filter(None, texts))
    return counts.most_common(1)[0][0] if counts else ""


def show_summary(result: Summary) -> None:
    """Show how a training ended."""
    rows = [
        ("validation accuracy", percent(result.validation_accuracy)),
        ("validation loss", number(result.validation_loss)),
        ("training loss", number(result.train_loss)),
        ("epochs", f"{result.epochs}, stopped early" if result.stopped_early else result.epochs),
        ("seconds", f"{result.seconds:.1f}"),
        ("parameters", f"{result.parameters:,}"),
        ("bits per weight", f"{result.weight_bits_mean:.2f}"),
        ("run folder", result.run),
    ]
    of_some = {"top 5": result.validation_top5, "F1": result.validation_f1}
    known = [
        (f"validation, {what}", percent(share))
        for what, share in of_some.items()
        if share is not None
    ]
    show(table(f"training {result.status}", ["", "#"], rows[:1] + known + rows[1:]), on_stdout=True)
    if result.profile is not None:
        show_profile(result.profile)
    show_health(result.health)


def show_profile(profile: Profile) -> None:
    """Show where the time of a training step goes."""
    rows = [
        (phase.replace("_", " "), f"{taken:.2f}", f"{100 * profile.share[phase]:.1f} %")
        for phase, taken in profile.milliseconds.items()
    ]
    rows.append(("whole step", f"{profile.step_milliseconds:.2f}", ""))
    title = f"a training step, median of {profile.steps}"
    show(table(title, ["", "#ms", "#share"], rows), on_stdout=True)
    if (peak := profile.peak_memory_bytes) is not None:
        say(f"peak memory: {size(peak)}", on_stdout=True)


def show_conversion(result: Conversion) -> None:
    """Show what became of a model on its way into integers."""
    rows = [
        ("accuracy of the float model", percent(result.validation_accuracy_float)),
        ("accuracy before, fake-quantized", percent(result.validation_accuracy_before)),
        ("accuracy after, in integers", percent(result.validation_accuracy_after)),
        ("largest logit difference", number(result.max_abs_difference)),
        ("float model", size(result.float_bytes)),
        ("integer model", size(result.integer_bytes)),
        ("integer layers", len(result.layers)),
        ("batch norms folded", sum(1 for la in result.layers if la.batch_norm)),
        ("written to", result.integer_model),
    ]
    if result.validation_accuracy_float is None:
        rows = rows[1:]
    if joins := Counter(site.kind for site in result.sites if site.kind != "rounded"):
        counts = ", ".join(f"{count} {kind}" for kind, count in joins.most_common())
        rows.insert(-1, ("joins in integers", counts))
    if result.method is not None:
        rows.insert(-1, ("method", f"{result.method}, {result.calibration_images} images"))
    if (avoided := result.no_saturation) is not None:
        rows[-1:-1] = [
            ("channels rounded anew, not to saturate", sum(avoided.channels.values())),
            ("accuracy before that", percent(avoided.validation_accuracy_before)),
            ("accuracy after it", percent(avoided.validation_accuracy_after)),
        ]
    show(table("converted", ["", "#"], rows), on_stdout=True)
    for note in result.notes:
        say(f"note: {note}")
    show_health(result.health)


def show_comparison(result: Comparison) -> None:
    """Show arms, their paired differences and the verdict."""
    against = {item.arm: item for item in result.differences}
    rows = []
    for arm in result.arms:
        gap = against.get(arm.name)
        spread = "-" if arm.std is None else f"{100 * arm.std:.2f}"
        values = ", ".join(percent(value).removesuffix(" %") for value in arm.values)
        rows.append((arm.name, percent(arm.mean), spread, values, _gap(gap), arm.failed))
    first = result.arms[0].name
    columns = ["arm", "#mean", "#std", "each seed", f"#against {first}, interval", "#failed"]
    show(table("validation accuracy", columns, rows), on_stdout=True)
    show_explained(result.explained)
    for sentence in fair_sentences(result):
        say(sentence, on_stdout=True)
    say(result.verdict, on_stdout=True)


def show_equivalence(result: Equivalence) -> None:
    """Show how near each arm stays to the custom estimator's run, by learning rate."""
    columns = ["arm", "#alignment error", "#codes", "#changes", "#answers", "#accuracy"]
    shares = (
        result.quantized_weight_agreement,
        result.change_point_agreement,
        result.inference_agreement,
    )
    accuracy = {arm.name: arm.mean for arm in result.arms}
    errors = result.weight_alignment_error
    rows = []
    for at, rate in enumerate(result.learning_rates):
        name = f"lr-{rate:g}/custom"
        rows.append((name, "", "", "", "", percent(accuracy[name])))
        for arm in errors:
            name = f"lr-{rate:g}/{arm}"
            alike = (percent(share[arm][at]) for share in shares)
            rows.append((name, number(errors[arm][at], 3), *alike, percent(accuracy.get(name))))
    show(table(f"as with {result.estimator}", columns, rows), on_stdout=True)
    show_explained(result.explained)
    for sentence in accuracy_sentences(result):
        say(sentence, on_stdout=True)
    say(result.verdict, on_stdout=True)


def show_straight_through(result: StraightThrough) -> None:
    """Show what became of a run on its way to straight_through."""
    columns = ["layer", "estimator", "#learning rate x", "#largest shift, steps"]
    rows = [
        (la.layer, la.estimator, number(la.alpha), number(la.largest_shift, 3))
        for la in result.layers
    ]
    show(table("rewritten for straight_through", columns, rows), on_stdout=True)
    folder, done, epochs = result.run, result.epochs_done, result.epochs
    if done < epochs:
        then = f"qtool train {folder}/recipe.yaml --run-dir {folder} --resume"
        say(f"{done} of {epochs} epochs are done; go on with: {then}")
    else:
        say(f"written to {folder}; the run was finished")
    for note in result.notes:
        say(f"note: {note}")


def show_runs(result: Comparison) -> None:
    """Show runs and files side by side."""
    rows = [arm.beside_others() for arm in result.arms]
    columns = ["run or file", "#validation accuracy", "#bits per weight", "#size", "#ms per image"]
    show(table("side by side", columns, rows), on_stdout=True)
    say(result.verdict, on_stdout=True)


def show_inspection(result: Inspection) -> None:
    """Show what a recipe, run, integer model or ONNX file holds."""
    said = result.to_json()
    plain = {key: v for key, v in said.items() if not isinstance(v, list | dict)}
    facts = [(_label(key), _fact(key, value)) for key, value in plain.items()]
    show(table(result.source, ["", ""], facts), on_stdout=True)
    if layers := said.get("layers"):
        shared = {key: _most_common([la.get(key, "") for la in layers]) for key in HOW}
        layers = [{k: v for k, v in la.items() if shared.get(k) != v} for la in layers]
        columns = list(dict.fromkeys(key for la in layers for key, value in la.items() if value))
        rows = [[layer.get(column, "") for column in columns] for layer in layers]
        show(table("layers", columns, rows), on_stdout=True)
        for key, how in shared.items():
            if how:
                text = f"{key}: {how}" + (", unless said otherwise" if key in columns else "")
                say(text, on_stdout=True)
    if result.left_float:
        rows = list(result.left_float.items())
        show(table("left float", ["layer", "why"], rows), on_stdout=True)
    show_sites(result.sites, on_stdout=True)
    of_codes = result.kind not in ("recipe", "run")
    if saturation := sentence_on(result.may_saturate, in_a_file=of_codes):
        say(saturation, on_stdout=True)
    if result.float_islands:
        names = [
            f"{one.name} ({one.operator})" for one in result.float_islands if not one.by_design
        ]
        if names:
            say(f"in float between quantized operators: {', '.join(names)}", on_stdout=True)
    for problem in result.problems:
        say(f"problem: {problem}", on_stdout=True)
    for repair in result.repairs:
        say(f"repaired: {repair}", on_stdout=True)


def _label(key: str) -> str:
    return key.replace("_bytes", " size").replace("_", " ")


def _fact(key: str, value: str | float | None) -> str:
    """Return what stands beside a key, as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or isinstance(value, str):
        return value or "-"
    if key.endswith(("accuracy", "agreement")):
        return percent(value)
    if key.endswith("bytes"):
        return size(value)
    return f"{value:,}" if isinstance(value, int) else number(value)


def show_estimators(result: EstimatorTable) -> None:
    """Show every gradient estimator; of its reference as much as the first paper."""
    rows = []
    for entry in result.estimators:
        paper = re.match(r".*?arXiv:\d+\.\d+|[^;.]*", entry.reference)
        verdict = "in the class" if entry.in_class else f"outside the class: {entry.reason}"
        said = "\n".join(filter(None, [entry.formula, paper[0] if paper else "", verdict]))
        rows.append((entry.name, said, number(entry.alpha)))
    columns = ["estimator", "formula, reference, class", "#alpha"]
    made = table("gradient estimators", columns, rows)
    made.columns[0].no_wrap = made.show_lines = True
    show(made, on_stdout=True)
    say("The class is that of arXiv:2405.05171, judged inside the grid.", on_stdout=True)
    if result.output is not None:
        say(f"drawn into {result.output}", on_stdout=True)


def _gap(item: Difference | None) -> str:
    if item is None or item.mean is None:
        return ""
    text = f"{100 * item.mean:+.2f}"
    if item.low is None or item.high is None or item.low == item.high:
        return text
    return f"{text} ({100 * item.low:+.2f} to {100 * item.high:+.2f})"


_FACES: dict[type[Result], Callable[..., None]] = {
    Summary: show_summary,
    Profile: show_profile,
    Conversion: show_conversion,
    StraightThrough: show_straight_through,
    Export: show_export,
    WholeRun: show_whole_run,
    Check: show_check,
    Prediction: show_prediction,
    UnprovenExport: show_unproven,
    AllExports: show_all_exports,
    Comparison: show_comparison,
    Equivalence: show_equivalence,
    Benchmark: show_benchmark,
    Inspection: show_inspection,
    EstimatorTable: show_estimators,
    Sensitivity: show_sensitivity,
}
