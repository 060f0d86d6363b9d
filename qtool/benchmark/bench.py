"""The measurement of `qtool bench`: all models, and what each is held against, run in turn."""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import quantiles

from qtool.benchmark.timed_file import TimedFile, inputs_of
from qtool.errors import InputError
from qtool.export.proof.in_turn import times_in_turn
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.reports.benchmarks import BenchedModel, Benchmark, OperatorTime, Spread, Timing

FORMS = ("exported", "float", "static")


def bench_files(
    models: Mapping[str, Path],
    folder: Path,
    *,
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    rounds: int = 30,
    profile: bool = False,
    processor: str = "",
) -> Benchmark:
    """Time ONNX files in ONNX Runtime, beside their float form and the runtime's own int8.

    Args:
        models: what people call them -> their files.
        folder: for files that are written to be timed.
        threads: how many the runtime uses; 0 for all.
        batches: how many images at once; a file of a fixed batch takes that one.
        rounds: how often each file runs; 2 or more.
        profile: time the operators, too, on one thread, for the first of `batches`.
        processor: its name, for the report.

    Raises:
        InputError: If a file cannot be loaded, or does not take so many images.
    """
    if rounds < 2:
        raise InputError(f"{rounds} rounds have no spread; 2 is the least, 30 is usual")
    runtime = OnnxRuntime()
    timed = []
    for place, (source, path) in enumerate(models.items()):
        own = folder / f"beside-{place}"
        own.mkdir()
        timed.append(TimedFile.beside(source, path, own, runtime))
    rows: list[list[Timing]] = [[] for _ in timed]
    for count in threads:
        for batch in batches:
            found = _timings(timed, runtime, count, batch, rounds)
            for row, timing in zip(rows, found, strict=True):
                row.append(timing)
    made = []
    for one, timings in zip(timed, rows, strict=True):
        said = {"notes": one.notes} if one.notes else {}
        if profile:
            said["operators"] = _operators(one, runtime, batches[0], rounds)
        made.append(
            BenchedModel.model_validate(
                {
                    "model": one.source,
                    "file_bytes": one.path.stat().st_size,
                    "timings": timings,
                    **said,
                }
            )
        )
    return Benchmark(
        processor=processor,
        cores=os.cpu_count() or 1,
        runtime=runtime.title,
        version=runtime.version,
        rounds=rounds,
        models=made,
    )


def _timings(
    timed: Sequence[TimedFile], runtime: OnnxRuntime, threads: int, batch: int, rounds: int
) -> list[Timing]:
    """Return the times of all models, run in turn."""
    runs, owners = [], []
    for place, one in enumerate(timed):
        for form, path in {"exported": one.path, **one.others}.items():
            session = runtime.open(path, threads=threads)
            runs.append(partial(session.run, inputs_of(session, one.path, batch)))
            owners.append((place, form))
    spreads: list[dict[str, Spread | None]] = [dict.fromkeys(FORMS) for _ in timed]
    for (place, form), taken in zip(
        owners, times_in_turn(runs, rounds=rounds, threads=threads), strict=True
    ):
        low, median, high = quantiles(taken, n=4, method="inclusive")
        spreads[place][form] = Spread(median=median, low=low, high=high)
    found = []
    for spread in spreads:
        exported = spread["exported"]
        assert exported is not None
        rate = 1000 * batch / exported.median
        said = {"threads": threads, "batch": batch, **spread, "images_per_second": rate}
        found.append(Timing.model_validate(said))
    return found


def _operators(one: TimedFile, runtime: OnnxRuntime, batch: int, rounds: int) -> list[OperatorTime]:
    """Return what each operator takes, slowest first."""
    given = inputs_of(runtime.open(one.path), one.path, batch)
    taken = runtime.profile(one.path, given, rounds)
    whole = sum(ms for _, _, ms in taken) or 1
    found = [OperatorTime(operator=op, name=n, ms=ms, share=ms / whole) for op, n, ms in taken]
    return sorted(found, key=lambda row: -row.ms)
