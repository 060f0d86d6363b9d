"""How long a file takes for one image, beside the float network and what the runtime makes of it.

All files are run in turn, see `qtool.export.proof.in_turn`.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from torch import Tensor, nn

from qtool.errors import ExportError
from qtool.export.proof.float_model import dequantized
from qtool.export.proof.gate import run
from qtool.export.proof.in_turn import times_in_turn
from qtool.export.targets.target import Runtime
from qtool.export.writing.saved import save
from qtool.export.writing.trace import Call, traced
from qtool.export.writing.weights import to_proto
from qtool.files.scratch import scratch
from qtool.reports.exports import Latency, Times, TimesOnAllThreads

FLOAT_OPSET = 18  # of the float file, which is only timed
CALIBRATION_IMAGES = 16  # for the runtime's own quantization: its ranges matter little to its time


def export_float(model: nn.Module, example: Tensor, path: Path, batch: int | None = None) -> None:
    """Write a float model as plain ONNX, to measure against.

    Raises:
        ExportError: If torch.onnx cannot express the model.
    """
    model = model.cpu().eval()
    save(to_proto(traced(model, Call(model, example, batch), FLOAT_OPSET)), path)


def latencies(
    paths: Sequence[Path], image: Tensor, runtime: Runtime, *, rounds: int = 30, threads: int = 1
) -> list[float]:
    """Return each file's median milliseconds for one image, measured in turn.

    Args:
        paths: of the files.
        image: [1, C, H, W].
        runtime: that runs them.
        rounds: how often each is run.
        threads: 1, where the thread's processor time counts; or 0 for as many as the runtime
            likes, where the time on the clock does.
    """
    sessions = [runtime.open(path, threads=threads) for path in paths]
    runs = [partial(run, session, image) for session in sessions]
    return [median(taken) for taken in times_in_turn(runs, rounds=rounds, threads=threads)]


def latency_beside_float(
    path: Path, integer: nn.Module, images: Tensor, runtime: Runtime, *, measure: bool = False
) -> Latency:
    """Return the times of a file and of the float network, whose own file is written for it.

    Args:
        path: of the file.
        integer: that it was made of.
        images: [N, C, H, W]; the first is run, some calibrate the runtime's own quantization.
        runtime: that runs the files.
        measure: time the runtime's own quantization of the float network, too, and all threads.

    A runtime that quantizes nothing by itself is timed against the float network alone.

    Raises:
        ExportError: If the float network cannot be written, or not be quantized by the runtime.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(scratch())
        batch = runtime.open(path).batch
        files = [folder / "float.onnx", path]
        export_float(dequantized(integer), images[:1], files[0], batch)
        if measure and runtime.quantizes:
            files.append(folder / "static.onnx")
            quantize_static(files[0], files[2], images, runtime, batch or 1)
        times = _named(latencies(files, images[:1], runtime))
        if not measure:
            return Latency.model_validate({**times, "static": None, "all_threads": None})
        everywhere = _named(latencies(files, images[:1], runtime, threads=0))
        on_all = TimesOnAllThreads.model_validate({**everywhere, "threads": os.cpu_count() or 1})
        return Latency.model_validate({**times, "all_threads": on_all})


def _named(times: Iterable[float]) -> dict[str, float]:
    return dict(zip(Times.model_fields, times, strict=False))


def quantize_static(
    given: Path, made: Path, images: Tensor, runtime: Runtime, batch: int = 1
) -> None:
    """Write a float file as the runtime's own quantization has it, calibrated on some images.

    Raises:
        ExportError: If the runtime cannot quantize it.
    """
    some = images[: max(CALIBRATION_IMAGES, batch)].detach().cpu().numpy()
    parts = [some[i : i + batch] for i in range(0, len(some), batch)]
    full = [part if len(part) == batch else _repeated(part, batch) for part in parts]
    try:
        runtime.quantize(given, made, full)
    except ExportError as error:
        raise ExportError(f"{error}; export without --measure") from error


def _repeated(part: np.ndarray, batch: int) -> np.ndarray:
    return np.concatenate([part, np.repeat(part[-1:], batch - len(part), axis=0)])
