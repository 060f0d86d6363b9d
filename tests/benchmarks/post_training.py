"""Post-training quantization of the published CIFAR ResNets, by 1,000 images they have not seen.

    python tests/benchmarks/post_training.py DATA WEIGHTS RESULTS.jsonl --columns default,brecq
    python tests/benchmarks/post_training.py DATA WEIGHTS RESULTS.jsonl --columns brevitas,torchao
    python tests/benchmarks/post_training.py DATA WEIGHTS RESULTS.jsonl --table

DATA holds cifar10.npz, whose x_test are the unseen images; WEIGHTS the files of Y. Idelbayev's
pytorch_resnet_cifar10. Every answer is added to RESULTS as soon as it is there, and what is there
is not computed again, so that a run that was stopped goes on. First layer and head have 8 bits; 256
training images calibrate. A column is a peer of post_training_peers.py or a `--method` of `qtool
convert`, with `+no_saturation` where that is asked for, too, or with `+full` for weights on the
full grid, -2 to 1 at 2 bits as peers have them, in place of -1 to 1. `--file` also judges the
exported file, in ONNX Runtime on this processor, as a column of its own. Results of several
machines may be joined, line by line. The table has the share of right answers, and McNemar's exact
test of each column against the first; `-` is what a peer cannot do, or a file that export's proof
refuses; an empty cell was not measured.
"""

import argparse
import json
import time
from collections.abc import Iterator
from itertools import product
from math import comb
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml
from post_training_peers import PEERS, CannotError, Logits, in_onnxruntime, version_of
from torch import Tensor

from qtool import pipeline
from qtool.errors import ExportError
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


def recipe(network: str, weights: Path, widths: str, grid: str = "narrow") -> dict[str, object]:
    """Return the recipe of one network at some widths; `grid` is of weights between the ends."""
    of_weights, of_activations = WIDTHS[widths]
    eight = {"weights": {"bits": 8, "grid": "narrow"}, "activations": {"bits": 8}}
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
            "weights": {"bits": of_weights, "grid": grid},
            "activations": {"bits": of_activations},
            "overrides": [{"match": ["conv1", "linear"], **eight}],
        },
        "training": {"epochs": 1, "learning_rate": 0.01, "calibration_batches": BATCHES},
    }


@torch.no_grad()
def right(model: Logits, batches: Batches) -> str:
    """Return 1 for each image whose class a network tells, else 0, as text."""
    return "".join(str(int(one)) for x, y in batches for one in (model(x).argmax(1) == y).tolist())


def by_qtool(
    path: Path, data: Path, column: str, batches: Batches, *, file: bool
) -> dict[str, str | None]:
    """Return the answers of the integer model of `qtool convert`, and of its file where proven."""
    method, *more = column.split("+")
    output = path.with_suffix(".safetensors")
    pipeline.convert(
        path,
        output=output,
        device="cpu",
        method=method,
        no_saturation="no_saturation" in more,
        data_root=data,
    )
    found: dict[str, str | None] = {column: right(Integer.open(output).model, batches)}
    if file:
        exported = path.with_suffix(".onnx")
        try:
            pipeline.export(output, output=exported, data_root=data)
            found[f"{column}, file"] = right(in_onnxruntime(exported), batches)
        except ExportError as error:
            print(error)
            found[f"{column}, file"] = None
    return found


def answers(
    network: str, widths: str, column: str, data: Path, weights: Path, *, file: bool
) -> dict[str, str | None]:
    """Return the answers of one network at some widths, by column; None where a peer cannot."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "r.yaml"
        grid = "full" if column.endswith("+full") else "narrow"
        path.write_text(yaml.safe_dump(recipe(network, weights, widths, grid)))
        access = Access.of(data).to_recipe(path)
        loaded = build.load_checked(path, access=access)
        loaders = build.make_data(loaded, torch.device("cpu"), access)
        batches = list(loaders.validation.batches(0))
        if column != "float" and column not in PEERS:
            return by_qtool(path, data, column, batches, file=file)
        model = build.make_network(loaded, loaders).model.eval()
        if column == "float":
            return {column: right(model, batches)}
        images = list(build.calibration_images(loaded, loaders))
        try:
            return {column: right(PEERS[column](model, *WIDTHS[widths], images), batches)}
        except CannotError:
            return {column: None}


def mcnemar(one: str, other: str) -> float:
    """Return the two-sided p of McNemar's exact test of two columns' answers."""
    pairs = list(zip(one, other, strict=True))
    first, second = pairs.count(("1", "0")), pairs.count(("0", "1"))
    count = first + second
    tail = sum(comb(count, k) for k in range(min(first, second) + 1)) / 2**count
    return min(1.0, 2 * tail)


def lines(path: Path) -> Iterator[dict[str, str | None]]:
    """Yield what was found so far."""
    if path.exists():
        yield from (json.loads(line) for line in path.read_text().splitlines())


def table(path: Path) -> None:
    """Print a row for each network and widths, and a column for each column."""
    found = {(r["network"], r["widths"], r["column"]): r["right"] for r in lines(path)}
    columns = list(dict.fromkeys(column for *_, column in found if column != "float"))
    print("| network | widths | float | " + " | ".join(map(str, columns)) + " |")
    print("|---" * (3 + len(columns)) + "|")
    measured = {(network, widths) for network, widths, column in found if column != "float"}
    for network, widths in product(FILES, WIDTHS):
        if (network, widths) in measured:
            first = found.get((network, widths, columns[0]))
            cells = [share(found.get((network, "W8A8", "float"), ""))]
            for column in columns:
                cell = found.get((network, widths, column), "")
                cells.append(share(cell))
                if first and cell and column != columns[0]:
                    cells[-1] += f" (p {mcnemar(first, cell):.2g})"
            print(f"| {network} | {widths} | " + " | ".join(cells) + " |")


def share(cell: str | None) -> str:
    """Return the share of right answers in percent, `-` for None, nothing for none."""
    if cell is None:
        return "-"
    return f"{100 * cell.count('1') / len(cell):.1f}" if cell else ""


def main() -> None:
    """Compute what is asked for and not there yet, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--columns", default="default")
    parser.add_argument("--networks", default=",".join(FILES))
    parser.add_argument("--widths", default=",".join(WIDTHS))
    parser.add_argument("--file", action="store_true")
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
            file = given.file and column != "float" and column not in PEERS
            if (network, widths, f"{column}, file" if file else column) in done:
                continue
            begun = time.monotonic()
            made = answers(network, widths, column, given.data, given.weights, file=file)
            seconds = round(time.monotonic() - begun, 1)
            about = {"network": network, "widths": widths, "seconds": seconds}
            if column in PEERS:
                about["version"] = version_of(column)
            with given.results.open("a") as results:
                for name, cell in made.items():
                    if (network, widths, name) not in done:
                        line = about | {"column": name, "right": cell}
                        results.write(json.dumps(line) + "\n")
                        print(network, widths, name, share(cell), seconds, flush=True)


if __name__ == "__main__":
    main()
