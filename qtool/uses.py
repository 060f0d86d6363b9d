"""What is done with a model that is there: predicted with, timed, inspected, drawn, repaired.

How one is made is told in `pipeline`.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from qtool.benchmark.bench import bench_files
from qtool.comparison.report import is_comparison, read_comparison, write_page
from qtool.files.scratch import scratch
from qtool.inspection.estimators import table_of_estimators
from qtool.inspection.inspect import inspect_source
from qtool.inspection.repaired import repair
from qtool.pipeline import convert
from qtool.prediction.classifier import Classifier
from qtool.prediction.integer_model import classifier_of
from qtool.prediction.predict import predict_onnx, predicted
from qtool.reports.benchmarks import Benchmark
from qtool.reports.inspections import EstimatorTable
from qtool.reports.predictions import Prediction
from qtool.reports.result import Result
from qtool.reports.results import read_finished
from qtool.runs.access import Access
from qtool.runs.converted.export import onnx_of
from qtool.runs.converted.integer import integer_of
from qtool.runs.machine import processor_name

__all__ = ["bench", "draw", "inspect", "inspect_estimators", "predict", "repair"]


def predict(
    model: Path,
    images: Sequence[Path],
    *,
    top: int = 5,
    csv_file: Path | None = None,
    assignments: list[str] | None = None,
    data_root: Path | None = None,
    run_code: bool = False,
) -> Prediction:
    """Run, integer model or ONNX file, and pictures -> their classes and shares, best first."""
    if model.suffix == ".onnx":
        return predict_onnx(model, images, top=top, csv_file=csv_file)

    def opened() -> Classifier:
        access = Access.of(data_root, assignments, run_code=run_code)
        to_integers = partial(
            convert, assignments=assignments, data_root=data_root, run_code=run_code
        )
        given = integer_of(model, to_integers, access)
        return classifier_of(given.model, given.usage, str(model))

    return predicted(opened, images, top=top, csv_file=csv_file)


def bench(
    models: Sequence[Path],
    *,
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    rounds: int = 30,
    profile: bool = False,
    assignments: list[str] | None = None,
    data_root: Path | None = None,
    run_code: bool = False,
) -> Benchmark:
    """ONNX files, runs, integer models -> times, beside float and the runtime's own int8."""
    to_integers = partial(convert, assignments=assignments, data_root=data_root, run_code=run_code)
    access = Access.of(data_root, assignments, run_code=run_code)
    with scratch() as folder:
        files = {str(model): onnx_of(model, folder, to_integers, access) for model in models}
        return bench_files(
            files,
            folder,
            threads=threads,
            batches=batches,
            rounds=rounds,
            profile=profile,
            processor=processor_name(),
        )


def inspect(source: Path, *, run_code: bool = False) -> Result:
    """Recipe, run, comparison, result, model or file of weights -> what it holds."""
    if is_comparison(source):
        return read_comparison(source) if source.is_dir() else read_finished(source)
    return inspect_source(source, Access.of(run_code=run_code))


def draw(source: Path, output: Path, *, run_code: bool = False) -> Result:
    """Run or comparison -> a page for people, report.html; return what `inspect` does."""
    write_page(source, output, Access.of(run_code=run_code))
    return inspect(source, run_code=run_code)


def inspect_estimators(*, output: Path | None = None) -> EstimatorTable:
    """Every gradient estimator -> its formula, its class and, in a page or a folder, pictures."""
    return table_of_estimators(output)
