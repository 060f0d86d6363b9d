"""Every target's eight files, in the oldest version of its runtime that it names, and the newest.

    python tests/benchmarks/each_target.py --venvs /tmp/venvs

Makes an environment for each version, with the runtime and numpy and nothing else, where there is
none yet; this interpreter has the runtimes too, as it proves each file when it writes it. Prints a
row for each target and version: how many files it loads, how many agree with the integer model, and
the largest difference in standard deviations of the logits.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from readers import read_by
from torch import nn

import qtool
from qtool.errors import QtoolError
from qtool.export.targets.target import TARGETS, Library
from tests.export.test_targets import FILES, IMAGES, converted
from tests.kit import float_net

AGREES = 1e-5  # of a standard deviation: rounding in float32


def environment(folder: Path, library: Library, version: str) -> str:
    """Return the interpreter of an environment with a version of a library; "" is the newest."""
    path = folder / f"{library.module}-{version or 'newest'}"
    python = path / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
        wanted = f"{library.module}=={version}.*" if version else library.module
        install = [str(python), "-m", "pip", "install", "--quiet", wanted, "numpy"]
        subprocess.run(install, check=True)
    return str(python)


def models() -> dict[str, nn.Module]:
    """Return the integer models of the eight files."""
    made = {}
    for name, (weights, activations) in FILES.items():
        section = {"weights": weights, "activations": activations | {"place": "layer_inputs"}}
        made[name] = converted(float_net(), section)
    return made


def main() -> None:
    """Print a row for each target and version."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venvs", type=Path, required=True, help="folder of the environments")
    parser.add_argument("--targets", default=",".join(TARGETS.names()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    integers = models()
    print("| target | runtime | files load | agree | largest, sigma | bytes of the eight |")
    print(f"|{'---|' * 6}", flush=True)
    for target in options.targets.split(","):
        library = TARGETS[target]().library
        with TemporaryDirectory() as kept:
            folder = Path(kept)
            np.save(folder / "images.npy", IMAGES.numpy())
            files, refused = {}, {}
            for name, integer in integers.items():
                files[name] = folder / f"{len(files)}.onnx"
                try:
                    qtool.export_onnx(integer, IMAGES, files[name], target)
                except QtoolError as error:
                    refused[name] = str(error)
                    del files[name]
            size = sum(path.stat().st_size for path in files.values())
            for version in (library.minimum, ""):
                reader, loaded, largest, agree = "", 0, 0.0, 0
                python = environment(options.venvs, library, version)
                for name, path in files.items():
                    with torch.no_grad():
                        expected = integers[name](IMAGES).numpy()
                    try:
                        reader, given, _ = read_by(python, path, folder)
                    except (RuntimeError, subprocess.CalledProcessError) as error:
                        print(f"{target}, {name}, {version or 'newest'}: {error}", file=sys.stderr)
                        continue
                    off = float(np.abs(given - expected).max() / expected.std())
                    loaded, agree, largest = loaded + 1, agree + (off < AGREES), max(largest, off)
                row = f"{loaded} of {len(FILES)} | {agree} | {largest:.1e} | {size:,}"
                print(f"| `{target}` | {reader} | {row} |", flush=True)
            for name, why in refused.items():
                print(f"{target}, {name}: {why}", file=sys.stderr)


if __name__ == "__main__":
    main()
