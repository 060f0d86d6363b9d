"""Post-training quantization of the published CIFAR ResNets, by 1,000 images they have not seen.

    python tests/benchmarks/post_training.py DATA WEIGHTS RESULTS.jsonl --columns default,brecq
    python tests/benchmarks/post_training.py DATA WEIGHTS RESULTS.jsonl --columns brevitas
    python tests/benchmarks/post_training.py DATA WEIGHTS RESULTS.jsonl --table

DATA holds cifar10.npz, whose x_test are the unseen images; WEIGHTS the files of Y. Idelbayev's
pytorch_resnet_cifar10. Every answer is added to RESULTS as soon as it is there, and what is there
is not computed again, so that a run that was stopped goes on. First layer and head have 8 bits; 256
training images calibrate. A column is a `--method` of `qtool convert`, with `+no_saturation` where
that is asked for, too, or a peer: brevitas takes `pip install brevitas` in an environment of its
own. The table has the share of right answers, and McNemar's exact test of each column against the
first.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from math import comb
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml
from torch import Tensor, nn

from qtool import pipeline
from qtool.runs.access import Access
from qtool.runs.built import build
from qtool.runs.converted.integer import Integer

FILES = {
    "resnet20": "resnet20-12fca82f.th",
    "resnet32": "resnet32-d509ac18.th",
    "resnet56": "resnet56-4bfd9763.th",
}
WIDTHS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W3A8": (3, 8), "W2A8": (2, 8)}
BATCHES, SIZE = 2, 128  # of calibration images
Batches = list[tuple[Tensor, Tensor]]


def recipe(network: str, weights: Path, widths: str) -> dict[str, object]:
    """Return the recipe of one network at some widths."""
    of_weights, of_activations = WIDTHS[widths]
    eight = {"weights": {"bits": 8}, "activations": {"bits": 8}}
    return {
        "model": {
            "name": network,
            "weights": str((weights / FILES[network]).resolve()),
            "shortcut": "subsample",
        },
        "data": {
            "name": "arrays",
            "file": "cifar10.npz",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "batch_size": SIZE,
            "image_size": 32,
        },
        "quantization": {
            "weights": {"bits": of_weights},
            "activations": {"bits": of_activations},
            "overrides": [{"match": ["conv1", "linear"], **eight}],
        },
        "training": {"epochs": 1, "learning_rate": 0.01, "calibration_batches": BATCHES},
    }


@torch.no_grad()
def right(model: Callable[[Tensor], Tensor], batches: Batches) -> str:
    """Return 1 for each image whose class a network tells, else 0, as text."""
    return "".join(str(int(one)) for x, y in batches for one in (model(x).argmax(1) == y).tolist())


def by_qtool(path: Path, data: Path, column: str, batches: Batches) -> str:
    """Return the answers of the integer model that `qtool convert` makes."""
    method, _, more = column.partition("+")
    output = path.with_suffix(".safetensors")
    pipeline.convert(
        path,
        output=output,
        device="cpu",
        method=method,
        no_saturation=more == "no_saturation",
        data_root=data,
    )
    return right(Integer.open(output).model, batches)


@torch.no_grad()
def by_brevitas(network: nn.Module, widths: str, calibration: Batches, batches: Batches) -> str:
    """Return the answers of Brevitas, with GPTQ and bias correction, as its examples call them."""
    brevitas = import_module("brevitas_examples.imagenet_classification.ptq.ptq_common")
    of_weights, of_activations = WIDTHS[widths]
    model = brevitas.quantize_model(
        network,
        backend="layerwise",
        weight_bit_width=of_weights,
        act_bit_width=of_activations,
        bias_bit_width=32,
        weight_quant_granularity="per_channel",
        act_quant_percentile=99.999,
        act_quant_type="sym",
        scale_factor_type="float_scale",
        quant_format="int",
        layerwise_first_last_bit_width=8,
    )
    brevitas.calibrate(calibration, model)
    model(calibration[0][0])  # sets the scales of its weights
    brevitas.apply_gptq(calibration, model, act_order=True)
    brevitas.apply_bias_correction(calibration, model)
    return right(model.eval(), batches)


def answers(network: str, widths: str, column: str, data: Path, weights: Path) -> str:
    """Return the answers of one network at some widths, by one column."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        path.write_text(yaml.safe_dump(recipe(network, weights, widths)))
        access = Access.of(data).to_recipe(path)
        loaded = build.load_checked(path, access=access)
        loaders = build.make_data(loaded, torch.device("cpu"), access)
        batches = list(loaders.validation.batches(0))
        if column not in ("float", "brevitas"):
            return by_qtool(path, data, column, batches)
        model = build.make_network(loaded, loaders).model.eval()
        if column == "float":
            return right(model, batches)
        labels = torch.empty(0)
        images = [(x, labels) for x in build.calibration_images(loaded, loaders)]
        return by_brevitas(model, widths, images, batches)


def mcnemar(one: str, other: str) -> float:
    """Return the two-sided p of McNemar's exact test of two columns' answers."""
    pairs = list(zip(one, other, strict=True))
    first, second = pairs.count(("1", "0")), pairs.count(("0", "1"))
    count = first + second
    tail = sum(comb(count, k) for k in range(min(first, second) + 1)) / 2**count
    return min(1.0, 2 * tail)


def lines(path: Path) -> Iterator[dict[str, str]]:
    """Yield what was found so far."""
    if path.exists():
        yield from (json.loads(line) for line in path.read_text().splitlines())


def table(path: Path) -> None:
    """Print a row for each network and widths, and a column for each column."""
    found = {(r["network"], r["widths"], r["column"]): r["right"] for r in lines(path)}
    columns = list(dict.fromkeys(column for *_, column in found if column != "float"))
    print("| network | widths | float | " + " | ".join(columns) + " |")
    print("|---" * (3 + len(columns)) + "|")
    for network, widths in dict.fromkeys((n, w) for n, w, c in found if c != "float"):
        cells = [found.get((network, "W8A8", "float"))]
        cells += [found.get((network, widths, column)) for column in columns]
        first = cells[1]
        texts = []
        for place, cell in enumerate(cells):
            text = "" if cell is None else f"{100 * cell.count('1') / len(cell):.1f}"
            if place > 1 and cell is not None and first is not None:
                text += f" (p {mcnemar(first, cell):.2g})"
            texts.append(text)
        print(f"| {network} | {widths} | " + " | ".join(texts) + " |")


def main() -> None:
    """Compute what is asked for and not there yet, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--columns", default="default")
    parser.add_argument("--networks", default=",".join(FILES))
    parser.add_argument("--widths", default=",".join(WIDTHS))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        table(given.results)
        return
    done = {(r["network"], r["widths"], r["column"]) for r in lines(given.results)}
    for network in given.networks.split(","):
        wanted = [("W8A8", "float")]
        wanted += [(w, c) for w in given.widths.split(",") for c in given.columns.split(",")]
        for widths, column in wanted:
            if (network, widths, column) in done:
                continue
            begun = time.monotonic()
            made = answers(network, widths, column, given.data, given.weights)
            seconds = round(time.monotonic() - begun, 1)
            line = {"network": network, "widths": widths, "column": column, "seconds": seconds}
            with given.results.open("a") as file:
                file.write(json.dumps(line | {"right": made}) + "\n")
            print(network, widths, column, made.count("1") / len(made), seconds, flush=True)


if __name__ == "__main__":
    main()
