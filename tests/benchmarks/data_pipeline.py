"""Where training on a folder of JPEGs waits for images, and what reading them costs the network.

    python tests/benchmarks/data_pipeline.py --folder path/to/folder_of_jpegs

Without a folder it writes JPEGs of ImageNet's usual size, 500 x 375 pixels, and reads those. Parts
of reading are processor time of one thread. An epoch stands between two passes over one batch kept
in memory: `waits` is its share spent waiting for the next batch, `slowdown` how much longer its
steps take than those in memory, and `busy` the time of the pass in memory over the epoch's.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from qtool.data.batches import Normalizer, seeded_generator
from qtool.data.file_batches import FileBatches
from qtool.data.image_files import centre_pixels, random_box, random_crop
from qtool.data.sources import FileSplit
from qtool.images.files import read_image
from qtool.models.vision import build_model

CLASSES = 10
WIDTH, HEIGHT = 500, 375  # pixels
Step = Callable[[Tensor, Tensor], None]


def write_photographs(folder: Path, count: int) -> None:
    """Write noise with the spectrum of photographs, 1 / frequency, about 120 kB each."""
    frequency = np.hypot(*np.meshgrid(np.fft.rfftfreq(WIDTH), np.fft.fftfreq(HEIGHT)))
    amplitude = 1 / np.maximum(frequency, 1 / WIDTH)
    for index in range(count):
        rng = np.random.default_rng(index)
        noise = np.fft.rfft2(rng.normal(size=(3, HEIGHT, WIDTH)))
        waves = np.fft.irfft2(noise * amplitude, (HEIGHT, WIDTH))
        pixels = (128 + 50 * waves / waves.std()).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{index}.jpg", quality=90)


def make_batches(paths: list[Path], given: argparse.Namespace, workers: int) -> FileBatches:
    """Return training batches of `paths`."""
    device = torch.device(given.device)
    split = FileSplit(paths, [index % CLASSES for index in range(len(paths))])
    normalizer = Normalizer((0.5,) * 3, (0.2,) * 3, channels=3, device=device, channels_last=True)
    what = {"batch_size": given.batch, "image_size": given.image_size, "workers": workers}
    what |= {"augment": True, "flip": True, "training": True, "seed": 0}
    return FileBatches(split, normalizer, device=device, **what)


def milliseconds(
    part: Callable[[Any], Any], inputs: list[Any], clock: Callable[[], float]
) -> float:
    """Return the median over `inputs` of what one call takes, in milliseconds."""
    part(inputs[0])
    moments = [clock()]
    for value in inputs:
        part(value)
        moments.append(clock())
    return round(1000 * median(end - start for start, end in pairwise(moments)), 3)


def measure_parts(paths: list[Path], given: argparse.Namespace) -> dict[str, float]:
    """Return milliseconds of each part of reading: for one image, or `_all` images."""
    size, device = given.image_size, torch.device(given.device)
    images = [read_image(path) for path in paths]
    boxes = [random_box(*image.size, seeded_generator(i)) for i, image in enumerate(images)]
    pairs = list(zip(images, boxes, strict=True))
    crops = [np.asarray(image.resize((size, size), 2, box=box)) for image, box in pairs]
    stacked = torch.from_numpy(np.stack(crops))
    moved = stacked.to(device).permute(0, 3, 1, 2)
    normalizer = Normalizer((0.5,) * 3, (0.2,) * 3, channels=3, device=device, channels_last=True)
    wait = torch.cuda.synchronize if device.type == "cuda" else int
    cpu, wall, rounds = time.thread_time, time.perf_counter, [0] * 9
    return {
        "decode": milliseconds(read_image, paths, cpu),
        "resize": milliseconds(lambda p: p[0].resize((size, size), 2, box=p[1]), pairs, cpu),
        "crop": milliseconds(lambda p: random_crop(p, size, seeded_generator(0)), paths, cpu),
        "validation_crop": milliseconds(lambda p: centre_pixels(p, size), paths, cpu),
        "stack_all": milliseconds(lambda _: np.stack(crops), rounds, cpu),
        "transfer_all": milliseconds(lambda _: (stacked.to(device), wait()), rounds, wall),
        "normalise_all": milliseconds(lambda _: (normalizer(moved), wait()), rounds, wall),
    }


def images_per_second(paths: list[Path], given: argparse.Namespace, workers: int) -> float:
    """Return how fast batches come when nothing else is done, from workers already started."""
    batches = make_batches(paths, given, workers)
    for _ in batches.batches(0):
        pass
    started = time.perf_counter()
    read = sum(len(labels) for _, labels in batches.batches(1))
    return round(read / (time.perf_counter() - started), 1)


def now(device: torch.device) -> Any:
    """Return this moment, on the device's own clock where it is CUDA."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(start: Any, end: Any) -> float:
    """Return the time between two moments."""
    if isinstance(start, float):
        return end - start
    end.synchronize()
    return start.elapsed_time(end) / 1000


def train(batches: Iterator[Any], step: Step, device: torch.device) -> tuple[float, float]:
    """Return the seconds spent waiting for batches and in steps."""
    marks = [now(device)]
    for images, labels in batches:
        marks.append(now(device))
        step(images, labels)
        marks.append(now(device))
    spans = [seconds(start, end) for start, end in pairwise(marks)]
    return sum(spans[0::2]), sum(spans[1::2])


def measure_epochs(paths: list[Path], given: argparse.Namespace, workers: int) -> dict[str, Any]:
    """Train `given.epochs` epochs, each between passes over a batch kept in memory."""
    device = torch.device(given.device)
    network = build_model(given.model, CLASSES, 3, given.image_size).model
    network = network.to(device).to(memory_format=torch.channels_last)
    batches = make_batches(paths, given, workers)
    started = time.perf_counter()
    warm_up = batches.batches(0)
    kept = next(warm_up)
    first_batch = time.perf_counter() - started
    for _ in warm_up:
        pass
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def step(images: Tensor, labels: Tensor) -> None:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    def in_memory() -> float:
        return sum(train(iter([kept] * len(batches)), step, device))

    train(iter([kept] * 2), step, device)
    rows, before = [], in_memory()
    for epoch in range(1, 1 + given.epochs):
        waited, computed = train(batches.batches(epoch), step, device)
        after = in_memory()
        memory, whole = (before + after) / 2, waited + computed
        rows.append((memory / whole, waited / whole, computed / memory, memory / len(batches)))
        before = after
    busy, waits, slowdown, step_s = (round(median(column), 4) for column in zip(*rows, strict=True))
    spread = [round(f(row[0] for row in rows), 3) for f in (min, max)]
    row = {"busy": busy, "busy_spread": spread, "waits": waits, "slowdown": slowdown}
    return row | {"step_s": step_s, "first_batch_s": round(first_batch, 2)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, help="JPEGs, in folders or not")
    numbers = {"--images": 256, "--image-size": 224, "--batch": 32, "--epochs": 2}
    texts = {"--model": "resnet18", "--workers": "0,1,2", "--train-workers": "2", "--device": "cpu"}
    for name, default in (numbers | texts).items():
        parser.add_argument(name, type=type(default), default=default)
    given = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as written:
        if given.folder is None:
            write_photographs(Path(written), given.images)
        found = sorted((given.folder or Path(written)).rglob("*"))
        paths = [path for path in found if path.suffix.lower() in {".jpg", ".jpeg"}][: given.images]
        training = {}
        for count in given.train_workers.split(",") if given.epochs else []:
            training[count] = measure_epochs(paths, given, int(count))
            print(f"training, {count} workers: {training[count]}")
        parts = measure_parts(paths[:64], given)
        print(f"milliseconds for one image, or all {len(paths[:64])}: {parts}")
        reading = {}
        for count in given.workers.split(","):
            reading[count] = images_per_second(paths, given, int(count))
            print(f"reading, {count} workers: {reading[count]} images/s")
    asked = {name: str(value) for name, value in vars(given).items()}
    about = {"torch": torch.__version__, "machine": platform.machine(), **asked}
    print(json.dumps({"about": about, "training": training, "parts": parts, "reading": reading}))


if __name__ == "__main__":
    main()
