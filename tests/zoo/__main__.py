"""Judge networks of the zoo: python -m tests.zoo [PATTERN ...] [--export]."""

import sys
import tempfile
import time
import warnings
from collections import Counter
from fnmatch import fnmatchcase
from pathlib import Path

from tests.zoo.harness import judge
from tests.zoo.networks import NETWORKS


def main() -> None:
    """Print each network's verdict, and how many there are of each."""
    patterns = [word for word in sys.argv[1:] if not word.startswith("--")] or ["*"]
    chosen = [n for n in NETWORKS if any(fnmatchcase(n, f"{p}*") for p in patterns)]
    counted = Counter[str]()
    for name in chosen:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            path = Path(folder) / "model.onnx" if "--export" in sys.argv else None
            verdict = judge(NETWORKS[name], path=path)
        counted[verdict.outcome] += 1
        seconds = time.perf_counter() - began
        sys.stdout.write(f"{verdict.outcome:8}{seconds:5.1f} s  {name}  {verdict.why}\n")
    sys.stdout.write(f"{dict(counted)}\n")


if __name__ == "__main__":
    main()
