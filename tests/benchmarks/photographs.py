"""Post-training quantization of SqueezeNet, by photographs that it was not trained on.

    python tests/benchmarks/photographs.py DATA WEIGHTS FOLDER [--widths W8A8] [--method gptq]

DATA holds Imagenette's validation photographs, as val/<wnid>/...; WEIGHTS is for torchvision's
squeezenet1_1, which tells a thousand classes. A share of the photographs, chosen once, may
calibrate, 256 of those do, and the others judge. First layer and head have 8 bits. What is judged
is the exported file, in ONNX Runtime on this machine, and the float network in torch; answers stay
in FOLDER, and what is there is not done again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor

from qtool import pipeline
from qtool.runs.access import Access
from qtool.runs.built import build

WIDTHS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4)}
ENDS = ["features.0", "classifier.1"]
Right = NDArray[np.bool_]


def recipe(asked: argparse.Namespace, widths: str) -> dict[str, object]:
    """Return the recipe at some widths."""
    of_weights, of_activations = WIDTHS[widths]
    eight = {"weights": {"bits": 8}, "activations": {"bits": 8}}
    return {
        "model": {"name": "squeezenet1_1", "weights": str(asked.weights.resolve())},
        "data": {
            "name": "image_folder",
            "folder": "val",
            "labels": "imagenet",
            "validation_share": 1 - asked.calibrating,
            "batch_size": 64,
            "image_size": 224,
            "workers": 0,
        },
        "quantization": {
            "weights": {"bits": of_weights},
            "activations": {"bits": of_activations},
            "overrides": [{"match": ENDS, **eight}],
        },
        "training": {"epochs": 1, "learning_rate": 0.01, "calibration_batches": 4},
    }


@torch.no_grad()
def right(model: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]) -> Right:
    """Return which images a network tells the class of."""
    return np.concatenate([(model(x).argmax(1) == y).numpy() for x, y in batches])


def in_onnxruntime(path: Path) -> Callable[[Tensor], Tensor]:
    """Return what a file gives, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(np.asarray(session.run(None, {name: x.numpy()})[0]))


def answers(asked: argparse.Namespace, widths: str, *, quantized: bool) -> Right:
    """Return which images the float network, or the exported file, gets right."""
    path = asked.folder / f"{widths}.yaml"
    path.write_text(yaml.safe_dump(recipe(asked, widths), sort_keys=False))
    access = Access.of(asked.data).to_recipe(path)
    loaded = build.load_checked(path, access=access)
    loaders = build.make_data(loaded, torch.device("cpu"), access)
    if not quantized:
        network = build.make_network(loaded, loaders).model.eval()
        return right(network, loaders.validation.batches(0))
    integer = path.with_name(f"{widths}-{asked.method}.safetensors")
    file = integer.with_suffix(".onnx")
    pipeline.convert(
        path, output=integer, device="cpu", method=asked.method, data_root=asked.data,
        no_saturation=asked.no_saturation,
    )  # fmt: skip
    pipeline.export(integer, output=file, unproven=True, data_root=asked.data)
    return right(in_onnxruntime(file), loaders.validation.batches(0))


def main() -> None:
    """Measure what is left, and print it beside float."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for place in ("data", "weights", "folder"):
        parser.add_argument(place, type=Path)
    parser.add_argument("--widths", default="W8A8,W4A8")
    parser.add_argument("--method", default="default")
    parser.add_argument("--calibrating", type=float, default=0.07, help="Share of the photographs.")
    parser.add_argument("--no-saturation", action="store_true")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    more = "-no_saturation" if asked.no_saturation else ""
    reference: Right | None = None
    for name in ["float", *asked.widths.split(",")]:
        widths = asked.widths.split(",")[0] if name == "float" else name
        kept = asked.folder / (
            "float.npy" if name == "float" else f"{name}-{asked.method}{more}.npy"
        )
        begun = time.monotonic()
        if not kept.is_file():
            np.save(kept, answers(asked, widths, quantized=name != "float"))
        found: Right = np.load(kept)
        reference = found if reference is None else reference
        gap = found.astype(float) - reference
        error = 1.96 * gap.std(ddof=1) / len(gap) ** 0.5
        words = f"{100 * gap.mean():+.2f} (+- {100 * error:.2f}) points"
        words += f", {time.monotonic() - begun:.0f} s"
        sys.stdout.write(f"{name}: {100 * found.mean():.2f} % of {len(found):,}, {words}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
