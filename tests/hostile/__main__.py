"""Many cases, one after the other, in a process that a case may end.

Args: kind --first N --count N --base FOLDER; prints one JSON line for each case that is not as it
must be, and one with the figures at the end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.hostile.cases import KINDS, case_of, make_base
from tests.hostile.judging import judged

BATCH = 250  # cases of one process


def main() -> None:
    """Judge cases, or have children judge them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=[*KINDS])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--base", type=Path, default=None)
    parser.add_argument("--child", action="store_true")
    given = parser.parse_args()
    if given.child:
        _judge(given.kind, given.first, given.count, given.base)
        return
    with tempfile.TemporaryDirectory() as folder:
        base = given.base or make_base(Path(folder) / "base")
        summary = run(given.kind, given.first, given.count, base)
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")


def run(kind: str, first: int, count: int, base: Path) -> dict[str, object]:
    """Judge cases in children; return what they ended with, and what is not as it must be."""
    codes: Counter[str] = Counter()
    problems: list[object] = []
    failed: list[object] = []
    seconds, memory = [0.0], [0]
    at, end = first, first + count
    while at < end:
        argv = [sys.executable, "-m", "tests.hostile", kind, "--child", "--base", str(base)]
        argv += ["--first", str(at), "--count", str(min(BATCH, end - at))]
        child = subprocess.run(argv, capture_output=True, check=False)
        lines = [json.loads(line) for line in child.stdout.decode().splitlines()]
        done = [line for line in lines if "code" in line]
        for line in done:
            codes[str(line["code"])] += 1
            seconds.append(line["seconds"])
            memory.append(line["memory"])
            if line["problem"]:
                problems.append(line)
            elif line["code"] == 1:
                failed.append(line)
        at += len(done)
        if len(lines) > 2 * len(done):  # one began and did not end
            code, said = child.returncode, child.stderr.decode()[-600:]
            problems.append({"case": at, "problem": f"killed the process: {code}", "said": said})
            codes["killed"] += 1
            at += 1
        elif not done:
            raise RuntimeError(child.stderr.decode())
    return {
        "kind": kind,
        "cases": count,
        "codes": dict(codes),
        "longest_seconds": max(seconds),
        "most_mebibytes": max(memory) // 2**20,
        "problems": problems,
        "failed": failed,  # work, not input: to be looked at
    }


def _judge(kind: str, first: int, count: int, base: Path) -> None:
    said = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    for index in range(first, first + count):
        said.write(json.dumps({"case": index}) + "\n")
        said.flush()
        folder = Path(tempfile.mkdtemp())
        try:
            argv = case_of(kind, index, folder, base)
            found = judged(argv, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        line = {
            "case": index,
            "argv": argv,
            "code": found.code,
            "seconds": round(found.seconds, 2),
            "memory": found.memory,
            "problem": found.problem,
        }
        if found.problem or found.code == 1:
            line["said"] = found.said[-1500:]
        said.write(json.dumps(line) + "\n")
        said.flush()


if __name__ == "__main__":
    main()
