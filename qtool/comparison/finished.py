"""Finished runs and exported files as they stand, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from qtool.comparison.execution.trials import ComparisonFolder
from qtool.comparison.report import NOTHING, Shown
from qtool.comparison.statistics.differences import Reached, differences_from_first
from qtool.comparison.statistics.verdicts import sentences_on_networks
from qtool.console import say, warn
from qtool.data.fingerprint import digest_of_images
from qtool.errors import InputError
from qtool.evaluation import accuracy_of, logits_of
from qtool.export.proof import gate
from qtool.export.proof.damage import refuse_damaged
from qtool.export.proof.latency import latencies
from qtool.export.targets.target import TARGETS
from qtool.export.writing import annotation
from qtool.export.writing.ends import takes_pictures
from qtool.export.writing.saved import bytes_of
from qtool.files.json_data import read_json
from qtool.files.reading import intact
from qtool.files.whole import refuse_unless_makeable
from qtool.inspection.onnx import read_onnx
from qtool.recipe.file import recipe_inside
from qtool.reports.comparisons import Arm, Comparison, Difference
from qtool.runs.access import OWN, Access
from qtool.runs.built import build
from qtool.runs.given import refuse_nothing_finished
from qtool.runs.kept.answers import Answers, read_answers
from qtool.runs.kept.folder import PARTS, RunFolder
from qtool.runs.kept.sound import why_not_fresh

MEASURED_IN = "onnxruntime"  # the target whose runtime takes every ONNX file


def side_by_side(
    sources: Sequence[Path],
    output: Path | None = None,
    access: Access = OWN,
    shown: Shown = NOTHING,
) -> Comparison:
    """Return what comparison.json says of finished runs and ONNX files.

    Args:
        sources: run folders and ONNX files.
        output: folder that comparison.json is written into; None writes nothing.
        access: what the user says of the files' data.
        shown: what is written beside comparison.json.

    Raises:
        InputError: If a source is neither, or nothing can be written there.
    """
    if output is not None:
        refuse_unless_makeable(output)
    shown.refuse_unless_writable()
    measured = [measured_of(source, access) for source in sources]
    arms, differences = [each.arm for each in measured], differences_of(measured)
    said = "\n".join([verdict_on(arms), *sentences_on_networks(differences)])
    result = Comparison(
        kind="runs", recipe=None, seeds=[], arms=arms, differences=differences, verdict=said
    )
    if output is not None:
        result.write(ComparisonFolder(output).report)
    shown.write(result, None if output is None else ComparisonFolder(output), sources)
    return result


@dataclass(frozen=True)
class Measured:
    """A run or a file.

    Attributes:
        arm: its row of a comparison.
        answers: what its network says of each validation image; None where that is not known.
    """

    arm: Arm
    answers: Answers | None


def differences_of(measured: Sequence[Measured]) -> list[Difference]:
    """Return how the others differ from the first, by images where they are the first's."""
    images = measured[0].answers.images if measured and measured[0].answers else None
    reached = [
        Reached(
            each.arm.name,
            each.arm.values,
            [each.answers.right if each.answers and each.answers.images == images else None],
        )
        for each in measured
    ]
    return differences_from_first(reached) if reached else []


def measured_of(source: Path, access: Access = OWN) -> Measured:
    """Return a finished run or an ONNX file as one row of a comparison.

    Raises:
        InputError: If it is neither.
    """
    refuse_nothing_finished(source)
    if source.is_dir():
        return _run_arm(RunFolder(source))
    return _onnx_arm(source, access.to(source))


def verdict_on(arms: Sequence[Arm]) -> str:
    """Say which of several single runs did best, and how little that means."""
    known = [(arm.mean, arm.name) for arm in arms if arm.mean is not None]
    if not known:
        return "No accuracy is known."
    best = max(mean for mean, _ in known)
    first = [name for mean, name in known if mean == best]
    if len(first) > 1:
        return f"{' and '.join(first)} are equally accurate."
    return f"The highest accuracy is {first[0]}'s, but one run each cannot tell merit from chance."


def _run_arm(folder: RunFolder) -> Measured:
    summary = folder.finished_summary()
    if summary is None:
        raise InputError(f"{folder}: not finished; go on with {folder.resume_command}")
    size = None
    why = why_not_fresh(folder, folder.integer)
    if why and folder.integer.is_file():
        say(f"{folder.integer}: {why}; its size is left out")
    elif folder.convert.is_file() and not why:
        size = read_json(folder.convert).get("integer_bytes")
    arm = _arm(
        folder.path,
        summary.validation_accuracy,
        bits=summary.weight_bits_mean,
        size=size if isinstance(size, int) else None,
    )
    try:
        return Measured(arm, read_answers(folder))
    except InputError as error:
        warn(f"{error}; the run is judged by its accuracy alone")
        return Measured(arm, None)


def _onnx_arm(path: Path, access: Access) -> Measured:
    """Measure a file: its accuracy on the validation set that its recipe names.

    Of that recipe nothing is taken but which data they are, and what cannot do harm.
    """
    model = read_onnx(path)
    refuse_damaged(path)
    said = annotation.read_metadata(model)
    with intact(path, "what qtool wrote into it is damaged"):
        bits = [
            (layer["weight_bits"] or 32, torch.Size(layer["shape"]).numel())
            for layer in said.get("layers", [])
        ]
        weights = sum(count for _, count in bits)
        mean_bits = sum(width * count for width, count in bits) / weights if weights else None
    accuracy = latency = answers = None
    if "recipe" in said:
        code = access.code_of_file(path, said.get(PARTS)).only("data set", "transform")
        recipe = recipe_inside(path, said["recipe"], code)
        data = build.make_data(recipe, torch.device("cpu"), access, source=str(path))
        if "architecture" in said:
            with intact(path, "what qtool wrote into it is damaged"):
                build.refuse_other_data(data, said["architecture"], str(path))
        runtime = TARGETS[MEASURED_IN]().runtime
        one, shown = data.first_images[:1], data.validation.batches(0)
        if takes_pictures(model):
            one, shown = next(data.labelled_pictures())[0], data.labelled_pictures()
        session = runtime.open(path)
        logits, labels = logits_of(lambda batch: gate.run(session, batch), shown)
        accuracy = accuracy_of(logits, labels)
        if accuracy is not None:
            answers = Answers.of(logits.argmax(1), labels, digest_of_images(data))
        latency = latencies([path], one, runtime)[0]
    arm = _arm(path, accuracy, bits=mean_bits, size=bytes_of(path), latency=latency)
    return Measured(arm, answers)


def _arm(
    source: Path,
    accuracy: float | None,
    *,
    bits: float | None,
    size: int | None,
    latency: float | None = None,
) -> Arm:
    return Arm(
        name=str(source),
        values=[accuracy],
        mean=accuracy,
        std=None,
        failed=0,
        weight_bits_mean=bits,
        bytes=size,
        latency_ms=latency,
    )
