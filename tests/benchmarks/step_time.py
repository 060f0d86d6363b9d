"""How much longer a training step takes than the float step, for every estimator.

    python tests/benchmarks/step_time.py --estimators straight_through,hyperbolic_tangent

Each quantized step stands between two float steps, in one process and in turn, so that what slows
the machine slows both; a ratio is the quantized step over the mean of its neighbours, and the
figure is the median over rounds. Images are random and stay on the device. With `--way` the step
is compiled or captured; where that is done to the whole model, it is done to the float one, too.
With `--weights '{range: ppq}'`, given as often as wanted, each estimator is measured once more with
these keys of quantization.weights; `--range learned,auto` measures each with either range.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from copy import deepcopy
from itertools import product
from statistics import median
from typing import Any

import torch
import yaml
from torch import Tensor, nn

import qtool
from qtool.models.vision import build_model
from qtool.numerics.estimators import ESTIMATORS
from qtool.numerics.relu_family import RELU_FAMILY
from qtool.numerics.sign_family import SIGN_FAMILY
from qtool.quantizers.control import compile_kernels, make_traceable
from qtool.training.captured import CapturedStep
from qtool.training.compiled import compiled_forward
from qtool.training.losses import cross_entropy
from qtool.training.optimizers import OPTIMIZERS, make_capturable, parameter_groups
from qtool.training.step import TrainingStep

Step = Callable[[], Any]
WAYS = ("kernels", "whole_model", "captured", "whole_model+captured")


def make_step(model: nn.Module, images: Tensor, labels: Tensor, way: str = "", **keys: Any) -> Step:
    """Return one training step: forward, cross entropy, backward, SGD with momentum.

    `way` is what training.compile and training.cuda_graph choose: "" for neither, kernels,
    whole_model, captured, or whole_model+captured; `keys` are fields of TrainingStep.
    """
    model.train()
    compile_kernels(model, wanted=way == "kernels")
    optimizer = OPTIMIZERS.build("sgd", weight_decay=1e-4)(parameter_groups(model), 1e-3)
    taken: Any = TrainingStep(model, cross_entropy, optimizer, **keys)
    if "whole_model" in way:
        taken.forward = compiled_forward(model)
    if "captured" in way:
        make_capturable(optimizer, images.device)
        make_traceable(model)
        taken = CapturedStep(taken)
    return lambda: taken(images, labels)


def quantization(estimator: str, bits: int, range_: str, place: str) -> dict[str, Any]:
    """Return the section that puts an estimator on weights and inputs, where it fits both."""
    of_weights = "straight_through" if estimator in RELU_FAMILY else estimator
    return {
        "weights": {"bits": bits, "range": range_, "estimator": of_weights},
        "activations": {"bits": bits, "range": range_, "estimator": estimator, "place": place},
    }


def timed(step: Step, device: torch.device) -> float:
    """Return the seconds that a step takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def measure(steps: dict[str, Step], rounds: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """Return milliseconds and the ratio to the float step of every step but `float`."""
    base = steps["float"]
    for step in steps.values():
        for _ in range(3):
            step()
    ratios: dict[str, list[float]] = {name: [] for name in steps if name != "float"}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        before = timed(base, device)
        for name, found in ratios.items():
            taken, after = timed(steps[name], device), timed(base, device)
            found.append(2 * taken / (before + after))
            times[name].append(taken)
            times["float"].append(after)
            before = after
    return {
        name: {
            "ms": round(1000 * median(times[name]), 2),
            "ratio": round(median(ratios[name]), 3) if name in ratios else 1.0,
            "spread": [round(f(ratios[name]), 3) for f in (min, max)] if name in ratios else [],
        }
        for name in times
    }


def make_parser(about: str) -> argparse.ArgumentParser:
    """Return a parser that knows which step is measured."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--range", default="learned")
    parser.add_argument("--place", default="relu_outputs")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--way", default="", choices=("", *WAYS), help="Compiled or captured.")
    parser.add_argument("--estimators", default="")
    parser.add_argument("--weights", action="append", default=[], help="YAML, as in a recipe.")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    torch.manual_seed(0)
    shape = (given.batch, 3, given.image_size, given.image_size)
    images = torch.randn(shape, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (given.batch,), device=device)
    network = build_model(given.model, 10, 3, given.image_size).model.to(device)
    network = network.to(memory_format=torch.channels_last)
    two_levels = given.bits == 1
    every = [n for n in ESTIMATORS.names() if two_levels or n not in SIGN_FAMILY]
    names = given.estimators.split(",") if given.estimators else every
    first, *others = given.range.split(",")
    prepared = {n: quantization(n, given.bits, first, given.place) for n in names}
    for name, other in product(names, others):
        prepared[f"{name} {other}"] = quantization(name, given.bits, other, given.place)
    for name, keys_of_weights in product(names, given.weights):
        section = quantization(name, given.bits, first, given.place)
        section["weights"] |= yaml.safe_load(keys_of_weights)
        prepared[f"{name} {keys_of_weights}"] = section
    keys = {"precision": torch.bfloat16 if given.bfloat16 else torch.float32}
    whole = given.way if given.way in WAYS[1:] else ""
    steps = {"float": make_step(deepcopy(network), images, labels, whole, **keys)}
    for name, section in prepared.items():
        for way in dict.fromkeys([whole, given.way]):
            model = qtool.prepare(network, section, images)
            steps[", ".join(filter(None, (name, way)))] = make_step(
                model, images, labels, way, **keys
            )
    found = measure(steps, given.rounds, device)
    for name, row in found.items():
        spread = " to ".join(f"{value:.2f}" for value in row["spread"])
        print(f"{name:40} {row['ms']:9.2f} ms  {row['ratio']:6.3f} x float  {spread}")
    about = {"torch": torch.__version__, "machine": platform.machine(), **vars(given)}
    print(json.dumps({"about": about, "steps": found}))


if __name__ == "__main__":
    main()
