"""Every published network from prepare to the gate: python -m tests.zoo.sweep PATTERN... --to FILE.

Each network is judged in a process of its own, small ones first. Every result is a line of JSON at
the end of FILE, so that a sweep that is killed loses one network, and goes on where it stopped when
it is started again. `--table` prints what FILE holds.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

import qtool
from qtool.errors import QtoolError
from qtool.export.proof.measure import Evidence, export_report, refuse
from qtool.export.writing.onnx_qdq import write_onnx
from qtool.export.writing.request import Writing
from qtool.graph.own_norm import NORM
from qtool.integer.converted import converted_state
from qtool.limits import LIMITS
from qtool.reports.exports import Latency
from tests.zoo.harness import first_line, tensors, unlisted
from tests.zoo.published import Published, timm_networks, torchvision_networks

SETTINGS = {"W4A8": (4, 8), "W4A4": (4, 4)}
ROWS, BATCHES = 8, 4  # images of a step and of a batch of validation; batches of validation
SECONDS = 240  # of processor time, for one network at one setting
MEBIBYTES = 6144  # of resident memory
SLACK = 6  # times its processor time that a network may take by the clock


def networks() -> dict[str, Published]:
    """Return all published networks by name."""
    return torchvision_networks() | timm_networks()


def step(model: nn.Module, images: Tensor) -> None:
    """Take one step of gradient descent, on every output that a model gives in training."""
    model.train()
    labels = torch.arange(len(images))
    losses = [F.cross_entropy(made, labels) for made in tensors(model(images))]
    torch.stack(losses).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], lr=0.01).step()


def reasons(given: Iterable[str]) -> Counter[str]:
    """Return how often each known limit is given as a reason, in its own words."""
    known = [
        next((limit.says for limit in LIMITS.values() if limit.fits(one)), one) for one in given
    ]
    return Counter(known)


def judged(network: Published, setting: str) -> dict[str, object]:
    """Return what becomes of a network: where it stops and why, or what its gate measured."""
    weights, activations = SETTINGS[setting]
    told: dict[str, object] = {"network": network.name, "setting": setting, "size": network.size}
    began, stage, seconds = time.process_time(), "build", dict[str, float]()

    def reached(name: str) -> None:
        nonlocal began, stage
        now = time.process_time()
        seconds[stage] = round(now - began, 1)
        began, stage = now, name

    try:
        torch.manual_seed(0)
        model = network.build()
        told["parameters"] = sum(p.numel() for p in model.parameters())
        norms = {n for n, m in model.named_modules() if isinstance(m, BatchNorm)}
        reached("prepare")
        recipe = {
            "weights": {"bits": weights},
            "activations": {"bits": activations, "place": "every_value"},
        }
        images = network.images(ROWS, 1)
        prepared = qtool.prepare(model, recipe, example=images)
        del model
        reached("step")
        step(prepared, images)
        qtool.reestimate_batch_norm(prepared, [images])  # one step moves statistics by a tenth
        reached("convert")
        integer = qtool.convert(prepared.eval())
        del prepared
        state = converted_state(integer)
        told["layers"] = len(state.layers)
        told["left_float"] = reasons(state.left_float.values())
        stay = {n.removesuffix(f".{NORM}"): why for n, why in state.not_folded.items()}
        told["batch_norms"] = len(norms)
        told["not_folded"] = reasons(stay[name] for name in norms & stay.keys())
        told["unlisted"] = unlisted(integer.qtool)
        reached("export")
        with TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            described = write_onnx(integer, images[:2], path, Writing())
            reached("gate")
            batches = [
                (network.images(ROWS, 2 + k), torch.arange(ROWS) + ROWS * k) for k in range(BATCHES)
            ]
            untimed = Latency.model_validate({"exported": 1.0, "float": 1.0})
            with patch("qtool.export.proof.latency.latency_beside_float", return_value=untimed):
                evidence = Evidence(integer, lambda: batches, batches[0][0])
                report = export_report(path, path, described, evidence)
        told["codes_compared"] = report.codes_compared
        told |= report.model_dump(include={
            "top1_agreement", "clear_share", "clear_agreement", "sigma", "median_abs_difference",
            "control", "integer_share", "fused_layers", "file_bytes", "disagreement", "notes",
        })  # fmt: skip
        told["why_slow"] = Counter(
            f"{one.operator}: {one.reason}" for one in report.why_slow if not one.by_design
        ).most_common(8)
        refuse(report, described)
        reached("")
        told["outcome"] = "unlisted" if told["unlisted"] else "right"
    except (ValueError, QtoolError) as error:
        told |= {"outcome": "refused", "stage": stage, "why": first_line(error)}
    except Exception as error:
        told |= {
            "outcome": "raw",
            "stage": stage,
            "why": f"{type(error).__name__}: {first_line(error)}",
        }
    told["seconds"] = seconds
    told["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return told


def resident(process: int) -> int:
    """Return the MiB of memory that a process holds; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(found[0]) // 1024 if found else 0


def in_a_child(name: str, setting: str, seconds: int, mebibytes: int) -> dict[str, object]:
    """Judge a network in a process of its own, which may not take more than it is given."""
    command = [sys.executable, "-m", "tests.zoo.sweep", "--one", setting, name]
    told: dict[str, object] = {"network": name, "setting": setting}
    with TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        with out.open("w") as to, err.open("w") as to_err:
            limit = (seconds, seconds)
            child = subprocess.Popen(
                command,
                stdout=to,
                stderr=to_err,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, limit),
            )
            ends, why = time.monotonic() + SLACK * seconds, ""
            while child.poll() is None:
                if resident(child.pid) > mebibytes:
                    why = f"it takes more than {mebibytes} MiB"
                elif time.monotonic() > ends:
                    why = f"it takes more than {SLACK * seconds} s by the clock"
                if why:
                    child.kill()
                    child.wait()
                    break
                time.sleep(0.2)
        lines = out.read_text().splitlines()
        if not why and child.returncode == 0 and lines:
            return json.loads(lines[-1])
        if not why and child.returncode in (-9, -24):
            why = f"it takes more than {seconds} s of processor time"
        last = (err.read_text().splitlines() or [""])[-1]
        outcome = "not run" if why else "raw"
        return told | {"outcome": outcome, "why": why or f"ended with {child.returncode}: {last}"}


def read(path: Path) -> dict[tuple[str, str], dict[str, object]]:
    """Return the newest result of each network and setting that a file holds."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("}")]  # a killed one is half there
    return {(one["network"], one["setting"]): one for one in found}


def run(
    patterns: Iterable[str],
    to: Path,
    settings: Iterable[str],
    *,
    again: Iterable[str] = (),
    seconds: int = SECONDS,
    mebibytes: int = MEBIBYTES,
) -> None:
    """Judge every network that is asked for and not in the file yet, the smallest first.

    Args:
        patterns: of names; what begins so.
        to: the file.
        settings: of SETTINGS.
        again: outcomes that are no end: those networks are judged anew.
        seconds: of processor time, for each.
        mebibytes: of memory, for each.
    """
    known = networks()
    chosen = [n for n in known if any(fnmatchcase(n, f"{p}*") for p in patterns)]
    chosen.sort(key=lambda name: known[name].parameters)
    done = read(to)
    for name, setting in [(name, setting) for setting in settings for name in chosen]:
        before = done.get((name, setting))
        if before is not None and before["outcome"] not in again:
            continue
        result = in_a_child(name, setting, seconds, mebibytes)
        whole = not to.exists() or not to.stat().st_size or to.read_text().endswith("\n")
        with to.open("a") as file:
            file.write(("" if whole else "\n") + json.dumps(result) + "\n")
        sys.stdout.write(f"{said(result)}\n")
        sys.stdout.flush()


def said(result: dict[str, object]) -> str:
    """Return a result as one line."""
    what = f"{result['outcome']:8} {result['network']:44} {result['setting']}"
    if result["outcome"] in ("not run", "raw", "refused"):
        return f"{what} {result.get('stage', '')}: {result.get('why')}"
    top = result["top1_agreement"]
    left = sum(result["left_float"].values())
    stay = sum(result["not_folded"].values())
    return (
        f"{what} {result['layers']:4} layers, {left:3} float, {stay:3} of "
        f"{result['batch_norms']:3} batch norms stay, share {result['integer_share']:.2f}, "
        f"top-1 {'-' if top is None else f'{top:.3f}'}, "
        f"{sum(result['seconds'].values()):.0f} s, {result['peak_mib']} MiB"
    )


def main() -> None:
    """Judge one network, all that are asked for, or print what is known of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="+")
    parser.add_argument("--to", type=Path, default=Path("sweep.jsonl"))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS))
    parser.add_argument(
        "--again", nargs="*", default=[], help="judge again what came out so: raw, refused"
    )
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--mebibytes", type=int, default=MEBIBYTES)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", choices=list(SETTINGS), help="judge one network in this process")
    args = parser.parse_args()
    if args.one:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sys.stdout.write(json.dumps(judged(networks()[args.patterns[0]], args.one)) + "\n")
    elif args.table:
        for result in read(args.to).values():
            sys.stdout.write(f"{said(result)}\n")
    else:
        run(
            args.patterns,
            args.to,
            args.settings,
            again=args.again,
            seconds=args.seconds,
            mebibytes=args.mebibytes,
        )


if __name__ == "__main__":
    main()
