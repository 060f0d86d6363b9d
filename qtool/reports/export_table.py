"""The face of an exported file: what the runtime made of it, why it is slow, what to beware of."""

from collections.abc import Iterator, Sequence

from qtool.console import say, show, table
from qtool.reports.checks import WholeRun
from qtool.reports.exports import (
    AllExports,
    Export,
    FloatOperator,
    NotExported,
    Times,
    UnprovenExport,
)
from qtool.reports.health import show_health
from qtool.reports.result import Result
from qtool.reports.saturation import sentence_on
from qtool.reports.words import number, percent, size

REASONS = 10  # rows of the table; all stand in the file
NAMES = 3  # in a row


def show_export(result: Export) -> None:
    """Show what the runtime made of an exported file."""
    runtime = result.runtime
    rows = [
        ("checked in", f"{runtime.name} {runtime.version}"),
        ("images", result.images),
        ("top-1 agreement", percent(result.top1_agreement)),
        *_ends_rows(result),
        ("accuracy in the runtime", percent(result.accuracy_runtime)),
        ("largest logit difference", number(result.max_abs_difference)),
        *_control_row(result),
        *_other_size_row(result),
        ("weight codes equal", f"{result.codes_compared:,}"),
        ("bits per weight on disk", number(result.bits_per_weight_on_disk)),
        ("file", size(result.file_bytes)),
        ("layers in integer kernels", f"{result.fused_layers} of {result.quantized_layers}"),
        *_kernels_row(result),
        *_shifted_row(result),
        *_time_rows(result),
        ("written to", result.file),
    ]
    title = "exported, but not verified" if result.unproven else "exported and verified"
    show(table(title, ["", "#"], rows), on_stdout=True)
    slow = [one for one in result.why_slow if not one.by_design]
    if slow:
        show_why_slow(slow)
    if by_design := len(result.why_slow) - len(slow):
        say(
            f"note: {number(by_design)} operators between quantized ones stay float by design "
            f"(under why_slow in the JSON file)"
        )
    for note in filter(None, [result.unproven, *result.notes]):
        say(f"note: {note}")
    said = ("constant_output", "slower_than_float")  # by the title, and as a warning
    show_health([found for found in result.health if found.kind not in said])


def show_unproven(result: UnprovenExport) -> None:
    """Show a file that was not run."""
    rows = [
        ("for", result.target),
        ("bits per weight on disk", number(result.bits_per_weight_on_disk)),
        ("file", size(result.file_bytes)),
        ("written to", result.file),
    ]
    show(table("exported, but not run", ["", "#"], rows), on_stdout=True)
    for note in (result.unproven, *result.notes):
        say(f"note: {note}")
    show_health(result.health)


def show_all_exports(result: AllExports) -> None:
    """Show what became of each target's file."""
    rows = [(name, *_cells(made)) for name, made in result.targets.items()]
    columns = ["target", "checked in", "#top-1", "#integers", "#file", "written to, or why not"]
    show(table("exported", columns, rows), on_stdout=True)


def _cells(made: Export | UnprovenExport | NotExported) -> tuple[str, ...]:
    """Return the cells of one target: where it was checked, how it does, and where it is."""
    if isinstance(made, NotExported):
        return "", "", "", "", made.error
    if isinstance(made, UnprovenExport):
        return "not run", "", "", size(made.file_bytes), f"{made.file}: {made.unproven}"
    checked = f"{made.runtime.name} {made.runtime.version}"
    share = percent(made.integer_share)
    return checked, percent(made.top1_agreement), share, size(made.file_bytes), made.file


def warnings_of(result: Result) -> Iterator[str]:
    """Yield what must not be overlooked in a file."""
    if isinstance(result, AllExports):
        for name, made in result.targets.items():
            yield from (f"{name}: {warning}" for warning in warnings_of(made))
    elif isinstance(result, WholeRun):
        yield from warnings_of(result.export)
    elif isinstance(result, Export):
        yield from _warnings(result)
    elif isinstance(result, UnprovenExport):
        yield f"not run, so not proven: {result.unproven}"


def _warnings(result: Export) -> Iterator[str]:
    yield from _slower(result)
    if saturation := sentence_on(result.may_saturate, in_a_file=True):
        yield saturation


def _slower(result: Export) -> list[str]:
    return [found.says for found in result.health if found.kind == "slower_than_float"]


def show_why_slow(found: Sequence[FloatOperator]) -> None:
    """Show what runs in float between quantized operators, by reason."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for one in found:
        names = groups.setdefault((one.operator, one.reason, one.change), [])
        if one.name not in names:
            names.append(one.name)
    rows = []
    for (operator, reason, change), names in list(groups.items())[:REASONS]:
        more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
        rows.append((operator, ", ".join(names[:NAMES]) + more, reason, change))
    columns = ["in float", "where", "why", "what would change it"]
    show(table("why slow", columns, rows), on_stdout=True)
    if len(groups) > REASONS:
        say(f"note: {len(groups) - REASONS} more reasons stand under why_slow in the JSON file")


def _other_size_row(result: Export) -> list[tuple[str, str]]:
    other = result.other_size
    if other is None:
        return []
    share = "" if other.top1_agreement is None else f"{percent(other.top1_agreement)} top-1, "
    said = f"{share}{number(other.max_abs_difference)}"
    return [(f"at {other.height} x {other.width}", said)]


def _control_row(result: Export) -> list[tuple[str, str]]:
    """Return the row on what an input that is nearly the same changes."""
    control = result.control
    label = "... of the file alone, input x 1.00001"
    return [] if control is None else [(label, number(control.max_abs_difference))]


def _kernels_row(result: Export) -> list[tuple[str, str]]:
    count, of = result.integer_operators, result.quantizable_operators
    return [] if of is None else [("all operators in integer kernels", f"{count} of {of}")]


def _shifted_row(result: Export) -> list[tuple[str, str]]:
    """Return the row on what a shift in place of ceil changed, where there was one."""
    share = result.ceil_shifted_share
    return [] if share is None else [("input codes changed by the shift", f"{share:.2e}")]


def _ends_rows(result: Export) -> Iterator[tuple[str, str]]:
    """Yield what a file says of pictures that it prepares itself."""
    ends = result.ends
    if ends is None:
        return
    yield "... of the file as it ships", percent(ends.top1_agreement)
    if ends.max_grey_difference is not None:
        levels = f"{number(ends.max_grey_difference)} of 255"
        yield "pictures resized otherwise by up to", levels


def _time_rows(result: Export) -> Iterator[tuple[str, str]]:
    """Yield how long one image takes, beside the float model and what it was measured against."""
    latency, slower = result.latency_ms, " (SLOWER)" if _slower(result) else ""
    yield "one image, one thread", f"{latency.exported:.2f} ms{slower}"
    yield from _others(latency)
    if (everywhere := latency.all_threads) is not None:
        yield f"one image, {everywhere.threads} threads", f"{everywhere.exported:.2f} ms"
        yield from _others(everywhere)


def _others(times: Times) -> Iterator[tuple[str, str]]:
    yield "the float model", f"{times.float_:.2f} ms"
    if times.static is not None:
        yield "the runtime's own int8", f"{times.static:.2f} ms"
