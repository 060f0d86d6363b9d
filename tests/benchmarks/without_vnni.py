"""Which layers saturate in ONNX Runtime on processors without VNNI, held against what qtool says.

    python tests/benchmarks/without_vnni.py            # what is wrong, and what qtool calls it
    python tests/benchmarks/without_vnni.py --times    # what uint8 around 128 costs

Each kind of layer is run with weights in which two of a channel's are 100, once for every two of
them, on inputs of 255: what is wrong then are the pairs that a kernel adds in 16 bits. Then with
drawn codes, as int8 and as uint8; then whole networks, exported by qtool.

On a machine that has VNNI the processor is another in two ways: emulated (qemu-x86_64 of Debian's
qemu-user, a Haswell, which has AVX2), or told to have less (`masked_cpuid`, which needs gcc,
objdump and Linux), the only way that times mean anything. Each run is a process of its own, which
gets files and inputs and gives outputs.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from masked_cpuid import masked
from numpy.typing import NDArray
from one_layer import KINDS, Kind, expected, file_of
from torch import nn

import qtool
from qtool.numerics.saturation import can_saturate
from qtool.quantizers.layers import quant_layers

CHILD = Path(__file__).with_name("run_files.py")
LARGE = 100  # 255 * (100 + 100) is more than 32767
INPUTS = {"bits": 8, "range": "min_max", "place": "every_value"}


@dataclass(frozen=True)
class Trial:
    """A layer with its codes and an input, and what is wrong with its outputs where."""

    kind: Kind
    codes: NDArray[np.int64]
    x: NDArray[np.uint8]
    factor: float
    unsigned: bool = False

    @property
    def named(self) -> NDArray[np.bool_]:
        """Return which channels qtool says can saturate."""
        return can_saturate(torch.from_numpy(self.codes), 255, groups=self.kind.groups).numpy()

    def wrong(self, given: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Return which channels have an output that is not exact."""
        apart = given != expected(self.kind, self.codes, self.x, self.factor)
        return apart.any((0, 2, 3) if self.kind.kernel else 0)


def trials() -> Iterator[Trial]:
    """Yield every kind of layer with all pairs of large weights, and with drawn codes."""
    for kind in KINDS:
        count = int(np.prod(kind.codes(1)))
        pairs = list(combinations(range(count), 2))
        rows = kind.outside or len(pairs) + -len(pairs) % 16
        codes = np.zeros((rows, count), np.int64)
        for row, pair in enumerate(pairs[:rows]):
            codes[row, list(pair)] = LARGE
        all_pairs = codes.reshape(kind.codes(rows))
        full = np.full(kind.inputs, 255, np.uint8)
        yield Trial(kind, all_pairs, full, 1 / 512)
        rng = np.random.default_rng(count)
        drawn = rng.integers(-127, 128, kind.codes(rows))
        drawn[::2] = drawn[::2] // 2  # every other channel fits into 7 bits
        x = np.where(rng.random(kind.inputs) < 0.7, 255, rng.integers(0, 256, kind.inputs))
        for unsigned in (False, True):
            yield Trial(kind, drawn, x.astype(np.uint8), 1 / 512, unsigned=unsigned)


class Network(nn.Module):
    """Convolutions of several kinds, then a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU(),
            nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def network(weights: dict[str, object], saturation: str, path: Path) -> tuple[list[str], ...]:
    """Export a network with large weights, inputs and outputs beside it; return what is said.

    That is: the layers that may saturate, and those that stand as uint8.
    """
    torch.manual_seed(0)
    images = torch.rand(16, 3, 24, 24)
    section = {"weights": {"bits": 8, "range": "absmax", **weights}, "activations": INPUTS}
    model = qtool.prepare(Network().eval(), section, images)
    with torch.no_grad():  # weights of one sign saturate soonest
        for layer in quant_layers(model).values():
            layer.weight.abs_()
            layer.fit_weight()
    qtool.calibrate(model, [images])
    integer = qtool.convert(model, saturation=saturation)
    described = qtool.export_onnx(integer, images, path)
    np.save(path.with_suffix(".x.npy"), images.numpy())
    np.save(path.with_suffix(".expected.npy"), integer(images).numpy())
    unsigned = [layer["name"] for layer in described["layers"] if layer["zero_point"]]
    return described.get("may_saturate", []), unsigned


Way = Callable[[Path], None]


def ways(scratch: Path) -> dict[str, Way]:
    """Return how files can be run here: what the processor is taken for -> what runs a folder."""
    found: dict[str, Way] = {"this processor": lambda folder: run([sys.executable], folder)}
    if emulator := shutil.which("qemu-x86_64"):
        argv = [emulator, "-cpu", "Haswell", sys.executable]
        found["emulated AVX2"] = lambda folder: run(argv, folder)
    for level in ("AVX2", "AVX-512"):
        if (environment := masked(scratch, level)) is not None:
            found[f"told {level}"] = lambda folder, env=environment: run(
                [sys.executable], folder, env
            )
    return found


def run(argv: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    """Run every file of a folder in a process of its own; its outputs lie beside the inputs."""
    subprocess.run(
        [*argv, str(CHILD), str(folder)],
        check=True, env=os.environ | (environment or {}), stderr=subprocess.DEVNULL,
    )  # fmt: skip


def verify(folder: Path, found: dict[str, Way]) -> int:
    """Print what is wrong in each way; return how many of qtool's statements are."""
    tried = list(trials())
    for index, trial in enumerate(tried):
        path = folder / f"{index}.onnx"
        made = file_of(trial.kind, trial.codes, trial.factor, unsigned=trial.unsigned)
        path.write_bytes(made)
        np.save(path.with_suffix(".x.npy"), trial.x)
    settings: list[tuple[str, dict[str, object], str]] = [
        ("allow", {}, "allow"),
        ("avoid", {"saturation": "avoid"}, "allow"),
        ("--no-saturation", {}, "avoid"),
    ]
    said = {name: network(w, how, folder / f"network {name}.onnx") for name, w, how in settings}
    mistakes, seen = 0, False
    for way, run_folder in found.items():
        run_folder(folder)
        print(f"\n{way}\n{'':44}{'pairs wrong/named':>20}{'drawn':>12}{'as uint8':>10}")
        for first in range(0, len(tried), 3):
            counts = []
            for index in range(first, first + 3):
                wrong = tried[index].wrong(np.load(folder / f"{index}.y.npy"))
                named = tried[index].named & (not tried[index].unsigned)
                mistakes += int((wrong & ~named).sum())
                if way != "this processor" and index == first:  # here every statement is exact
                    mistakes += int((named & ~wrong).sum())
                counts.append(f"{int(wrong.sum())}/{int(named.sum())}")
            print(f"{tried[first].kind.name:44}{counts[0]:>20}{counts[1]:>12}{counts[2]:>10}")
        for name, (may, unsigned) in said.items():
            path = folder / f"network {name}.onnx"
            y, right = (np.load(path.with_suffix(f".{what}.npy")) for what in ("y", "expected"))
            apart = float(np.abs(y - right).max() / right.std())
            mistakes += int(not may and apart > 1e-5)
            seen |= bool(may) and apart > 1e-5
            print(f"network, {name}: off by {apart:.1e} sigma; named {may}, as uint8 {unsigned}")
    return mistakes if seen or len(found) == 1 else mistakes + 1  # allow is wrong somewhere


def times(folder: Path, found: dict[str, Way]) -> None:
    """Print what a kernel takes with uint8 over what it takes with int8."""
    kinds = [
        Kind("1x1 64 to 64, 56 px", 64, outside=64, size=56),
        Kind("1x1 64 to 256, 56 px", 64, outside=256, size=56),
        Kind("1x1 512 to 2048, 7 px", 512, outside=2048, size=7),
        Kind("1x1 58 to 58, 28 px", 58, outside=58, size=28),
        Kind("1x1 256 to 512, stride 2, 56 px", 256, outside=512, size=56, stride=2),
        Kind("1x1 1152 to 48, 1 px", 1152, outside=48, size=1),
        Kind("1x1 48 to 1152, 1 px", 48, outside=1152, size=1),
        Kind("3x3 64 to 64, 56 px", 64, 3, outside=64, size=56),
        Kind("3x3 512 to 512, 7 px", 512, 3, outside=512, size=7),
        Kind("3x3 3 to 32, stride 2, 224 px", 3, 3, outside=32, size=224, stride=2),
        Kind("7x7 3 to 64, stride 2, 224 px", 3, 7, outside=64, size=224, stride=2),
        Kind("3x3 in groups of 8, 48 channels, 28 px", 48, 3, 6, outside=48, size=28),
        Kind("linear 512 to 1000, 1 row", 512, 0, outside=1000, size=1),
        Kind("linear 2048 to 1000, 1 row", 2048, 0, outside=1000, size=1),
        Kind("linear 768 to 3072, 197 rows", 768, 0, outside=3072, size=197),
    ]
    rng = np.random.default_rng(0)
    for index, kind in enumerate(kinds):
        codes = rng.integers(-127, 128, kind.codes(kind.outside))
        for form in ("int8", "uint8"):
            path = folder / f"{index} {form}.onnx"
            path.write_bytes(file_of(kind, codes, 1e-5, unsigned=form == "uint8"))
            np.save(path.with_suffix(".x.npy"), rng.integers(0, 256, kind.inputs).astype(np.uint8))
    for way, run_folder in found.items():
        if way.startswith("emulated"):
            continue
        run_folder(folder)
        print(f"\n{way}\n{'':42}{'int8, us':>10}{'uint8, us':>11}{'ratio':>8}")
        for index, kind in enumerate(kinds):
            int8, uint8 = (
                float(np.load(folder / f"{index} {form}.us.npy")) for form in ("int8", "uint8")
            )
            print(f"{kind.name:42}{int8:>10.0f}{uint8:>11.0f}{uint8 / int8:>8.2f}")


def main() -> None:
    """Verify what qtool says, or time what uint8 costs; end with 1 where qtool is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", action="store_true", help="only what uint8 costs")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = Path(scratch) / "files"
        folder.mkdir()
        found = ways(Path(scratch))
        if arguments.times:
            times(folder, found)
        elif mistakes := verify(folder, found):
            sys.exit(f"\n{mistakes} statements of qtool are wrong")


if __name__ == "__main__":
    main()
