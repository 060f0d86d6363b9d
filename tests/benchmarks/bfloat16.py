"""What training under bfloat16 autocast changes, beside what a slightly other learning rate does.

    python tests/benchmarks/bfloat16.py --device cuda

Weights: the share of codes that differs after the same steps in float32 and bfloat16, and in two
float32 runs whose learning rates differ by 1 %. Activations: the share that differs in one float32
forward pass where what is rounded is cast to bfloat16, and what of it rounding itself adds.
Accuracy: of whole runs. Processors without bfloat16 instructions take many times as long; for them:
--set model.name=lenet5 --set quantization.overrides=[].
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from qtool import pipeline
from qtool.numerics.grid import quantize
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.layers import quant_layers
from qtool.runs.built import build
from qtool.runs.epochs import start_or_resume
from qtool.runs.kept.folder import RunFolder
from qtool.runs.run import Run
from qtool.training.loop import Trainer

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
Codes = dict[str, Tensor]


class EnoughError(Exception):
    """Ends training after the steps that are wanted."""


def make_trainer(assignments: list[str], device: torch.device) -> Trainer:
    """Return the recipe's trainer at its beginning; the same numbers whatever its precision."""
    recipe = build.load_checked(RECIPE, assignments)
    with tempfile.TemporaryDirectory() as folder:
        return start_or_resume(Run(RunFolder(Path(folder)), recipe, device))[0]


def train_steps(trainer: Trainer, steps: int) -> nn.Module:
    """Return the model after so many steps."""
    loss, left = trainer.loss, iter(range(steps))

    def counted(logits: Tensor, labels: Tensor) -> Tensor:
        if next(left, None) is None:
            raise EnoughError
        return loss(logits, labels)

    trainer.loss = counted
    try:
        trainer.fit(lambda line: None)
    except EnoughError:
        return trainer.model
    raise SystemExit("too few steps in the recipe")


def weight_codes(model: nn.Module) -> Codes:
    """Return layer -> the integers that its weight is rounded to."""
    return {
        name: quantize(q.before_rounding(layer.weight), q.scale, 0, q.known_grid)
        for name, layer in quant_layers(model).items()
        if (q := layer.weight_quantizer) is not None
    }


@torch.no_grad()
def activation_codes(trainer: Trainer, cast: Callable[[Tensor], Tensor]) -> Codes:
    """Return quantizer -> the integers of one batch; it rounds `cast` of its float32 input."""
    found: Codes = {}

    def look(quantizer: ActivationQuantizer, args: tuple[Tensor, ...]) -> None:
        x_hat = quantizer.round_to_grid(cast(args[0])).float()
        found[names[quantizer]] = torch.round(x_hat / quantizer.scale)

    modules = trainer.model.named_modules()
    names = {module: name for name, module in modules if isinstance(module, ActivationQuantizer)}
    with ExitStack() as hooks:
        for quantizer in names:
            hooks.callback(quantizer.register_forward_pre_hook(look).remove)
        trainer.model.eval()(next(iter(trainer.validation.batches(0)))[0])
    return found


def differing(one: Codes, two: Codes) -> dict[str, float]:
    """Return the share of codes that differ: of all of them under `overall`, and of each layer."""
    apart = {name: (one[name] != two[name]).flatten().float() for name in one}
    shares = {"overall": torch.cat([*apart.values()]), **apart}
    return {name: float(found.mean(dtype=torch.float64)) for name, found in shares.items()}


def code_shares(given: argparse.Namespace, bits: int) -> dict[str, dict[str, float]]:
    """Return the shares of codes that differ at so many bits."""
    device = torch.device(given.device)
    sides = (f"quantization.{side}.bits={bits}" for side in ("weights", "activations"))
    base = make_trainer(keys := [*given.set, *sides], device)
    plain = weight_codes(train_steps(base, given.steps))
    half = make_trainer([*keys, "training.precision=bfloat16"], device)
    other = make_trainer(keys, device)
    other.learning_rate = lambda progress: 1.01 * base.learning_rate(progress)
    codes = activation_codes(base, lambda x: x)
    values = activation_codes(base, lambda x: x.bfloat16().float())
    rounded = activation_codes(base, lambda x: x.bfloat16())
    return {
        "weights, bfloat16": differing(plain, weight_codes(train_steps(half, given.steps))),
        "weights, rate 1 % higher": differing(plain, weight_codes(train_steps(other, given.steps))),
        "activations, values in bfloat16": differing(codes, values),
        "activations, by the rounding": differing(values, rounded),
    }


def accuracies(given: argparse.Namespace, precision: str) -> list[float]:
    """Return the final validation accuracy of each seed's run, 0..1."""
    keys, found = [*given.set, f"training.precision={precision}"], []
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            run = pipeline.train(
                RECIPE,
                run_dir=Path(folder),
                assignments=[*keys, f"seed={seed}"],
                device=given.device,
            )
        assert run.validation_accuracy is not None  # digits are classes
        found.append(run.validation_accuracy)
    return found


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=3, help="2 or more; 0 trains no whole run")
    parser.add_argument("--bits", default="2,4,8")
    parser.add_argument("--set", action="append", default=[], help="an assignment to the recipe")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for bits in (int(part) for part in given.bits.split(",")):
        found[f"{bits} bits"] = code_shares(given, bits)
        for figure, of_layers in found[f"{bits} bits"].items():
            for layer, share in of_layers.items():
                print(f"{bits} bits  {figure:32} {layer:42} {100 * share:8.4f} %", flush=True)
    for precision in ("float32", "bfloat16") if given.seeds else ():
        each = found[precision] = accuracies(given, precision)
        print(f"accuracy {precision:9} {mean(each):.4f}, deviation {stdev(each):.4f}, of {each}")
    print(json.dumps({"about": {"torch": torch.__version__, **vars(given)}, "found": found}))


if __name__ == "__main__":
    main()
