"""How much of whole networks runs in integers, how fast, and how exactly.

    python tests/benchmarks/integers.py --networks resnet18,mobilenet_v2 --bits 8,4

Builds each network at random, with batch norm statistics of noise, takes it through `prepare`,
three training steps, `convert` and `export_onnx`, and measures the file in ONNX Runtime beside the
float network (the integer model with float layers) and beside ONNX Runtime's own quantize_static of
that: all in turn in one process, processor time of the one thread, medians of the ratios of each
round. The logits of random images are held against the integer model's, in standard deviations of
the logits, and so is each quantized value, code by code.
"""

import argparse
import json
import platform
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torchvision.models import get_model

import qtool
from qtool.evaluation import agreement, judge
from qtool.export.proof.float_model import dequantized
from qtool.export.proof.gate import run
from qtool.export.proof.in_turn import UNCOUNTED
from qtool.export.proof.islands import RuntimeGraph, owners
from qtool.export.proof.latency import export_float, quantize_static
from qtool.export.proof.site_codes import compare_site_codes
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.integer.converted import converted_state

CONVOLUTIONAL = {  # network -> its convolutions
    "resnet18": 20,
    "resnet50": 53,
    "mobilenet_v2": 52,
    "squeezenet1_1": 26,
    "googlenet": 57,
    "efficientnet_b0": 81,
    "shufflenet_v2_x1_0": 56,
    "mobilenet_v3_small": 52,
    "regnet_y_400mf": 85,
    "densenet121": 120,
}
TRANSFORMERS = ("convnext_tiny", "vit_b_16", "swin_t")
NOISY = 4  # images that batch norms take their statistics from, and that a step trains on
RUNTIME = OnnxRuntime()


@dataclass
class Row:
    """What is found of one network at one width.

    Attributes:
        convolutions, linears: layers in integer kernels, of all that there are.
        operators: the same of all quantizable operators.
        float_between: operators that run in float between quantized ones.
        milliseconds: of one image on one thread, of the float network.
        of_float, of_static: the file's time as a share of the others'.
        sigma: largest difference of a logit from the integer model's, in standard deviations.
        disagreement: why an export would refuse the file for its logits, "" where it would not.
        sites: places at which every code is the integer model's, of all that there are.
        codes_off: share of all codes that are not.
    """

    network: str
    bits: int
    convolutions: tuple[int, int]
    linears: tuple[int, int]
    operators: tuple[int, int]
    float_between: int
    milliseconds: float
    of_float: float
    of_static: float | None
    sigma: float
    disagreement: str
    sites: tuple[int, int]
    codes_off: float


def network(name: str, px: int) -> nn.Module:
    """Return a network with random weights, whose norms have seen noise, for inference."""
    torch.manual_seed(0)
    sizes = {"image_size": px} if name.startswith("vit") else {}
    if name == "googlenet":
        sizes = {"init_weights": False, "aux_logits": False}
    model = get_model(name, weights=None, **sizes).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all that it sees
        if type(module).__name__ == "CNBlock":
            nn.init.constant_(module.get_parameter("layer_scale"), 0.1)
    if name.startswith("vit"):  # the head is zero before training
        nn.init.normal_(model.get_parameter("heads.head.weight"), std=0.02)
    with torch.no_grad():
        model(torch.randn(NOISY, 3, px, px))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return model.eval()


def section(bits: int, place: str) -> dict[str, object]:
    """Return the recipe's section on quantization."""
    activations: dict[str, object] = {"bits": bits, "place": place}
    if place == "every_value":
        activations["join_bits"] = 8
    has_vnni = {"avx512_vnni", "avx_vnni"} & instructions()
    weights = {"bits": bits, "saturation": "allow" if has_vnni else "avoid"}
    return {"weights": weights, "activations": activations}


def quantized(model: nn.Module, bits: int, px: int, place: str) -> nn.Module:
    """Return the integer model of a network after three training steps."""
    images = torch.randn(NOISY, 3, px, px)
    prepared = qtool.prepare(model, section(bits, place), images).train()
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-3)
    for _ in range(3):
        logits = prepared(torch.randn(NOISY, 3, px, px))
        loss = nn.functional.cross_entropy(logits, torch.randint(logits.shape[1], (NOISY,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    prepared.eval()
    qtool.round_biases(prepared)
    return qtool.convert(prepared, [images])


def ratios(files: list[Path], image: Tensor, rounds: int, seconds: float) -> list[list[float]]:
    """Return the processor time of each file in each round, in milliseconds, taken in turn."""
    sessions = [RUNTIME.open(path, threads=1) for path in files]
    times: list[list[float]] = [[] for _ in files]
    ends = time.monotonic() + seconds
    for turn in range(rounds + UNCOUNTED):
        for session, taken in zip(sessions, times, strict=True):
            best = float("inf")
            for _ in range(2):  # the first of two meets a cold cache
                started = time.thread_time()
                run(session, image)
                best = min(best, time.thread_time() - started)
            if turn >= UNCOUNTED:
                taken.append(1000 * best)
        if time.monotonic() > ends and turn > UNCOUNTED:
            break
    return times


def in_integers(path: Path, integer: nn.Module, graph: RuntimeGraph) -> dict[str, tuple[int, int]]:
    """Return how many layers of each kind run in integer kernels, and how many there are."""
    file = {name: n.name for n in onnx.load(str(path)).graph.node for name in n.output}
    kernels = {
        owner
        for node, owner in owners(graph.graph.node, file)
        if node.op_type in RUNTIME.integer_kernels
    }
    found = {}
    state = converted_state(integer)
    for kind in ("Conv2d", "Linear"):
        names = [spec.name for spec in state.layers if spec.kind == kind]
        names += [n for n in state.left_float if type(integer.get_submodule(n)).__name__ == kind]
        found[kind] = (sum(name in kernels for name in names), len(names))
    return found


@torch.no_grad()
def compared(path: Path, integer: nn.Module, images: int, px: int) -> tuple[float, str]:
    """Return the largest difference of a logit, in sigma, and why exports would refuse the file."""
    session = RUNTIME.open(path)
    expected, given = [], []
    for _ in range(images):
        image = torch.randn(1, 3, px, px)
        expected.append(integer(image))
        given.append(run(session, image))
    figures = agreement(torch.cat(expected), torch.cat(given))
    off = figures["max_abs_difference"] / figures["sigma"]
    return off, judge(figures, torch.cat(given))


def measured(name: str, bits: int, options: argparse.Namespace) -> Row:
    """Return what is found of one network at one width."""
    px = options.px
    integer = quantized(network(name, px), bits, px, options.place)
    with TemporaryDirectory() as kept:
        folder = Path(kept)
        files = [folder / "m.onnx", folder / "float.onnx", folder / "static.onnx"]
        qtool.export_onnx(integer, torch.randn(2, 3, px, px), files[0])
        export_float(dequantized(integer), torch.randn(1, 3, px, px), files[1])
        if options.no_static:
            files.pop()
        else:
            quantize_static(files[1], files[2], torch.randn(2, 3, px, px), RUNTIME)
        graph = RuntimeGraph(RUNTIME.optimized(files[0]), RUNTIME)
        layers = in_integers(files[0], integer, graph)
        quantizable = graph.quantizable()
        between = graph.float_between_integers()
        if options.show:
            for node, owner in owners(between, {}):
                print(f"  in float: {owner} ({node.op_type})", flush=True)
        times = ratios(files, torch.randn(1, 3, px, px), options.rounds, options.seconds)
        mine, others = times[0], times[1:]
        shares = [median(a / b for a, b in zip(mine, o, strict=True)) for o in others]
        codes = [
            site
            for _ in range(options.codes)
            for site in compare_site_codes(
                files[0], integer, torch.randn(1, 3, px, px), RUNTIME
            ).items()
        ]
        wrong = {place for place, found in codes if found.differing}
        if options.show:
            for place in sorted(wrong):
                print(f"  codes differ: {place}", flush=True)
        places = {place for place, _ in codes}
        total = max(1, sum(found.values for _, found in codes))
        sigma, disagreement = compared(files[0], integer, options.images, px)
        return Row(
            network=name,
            bits=bits,
            convolutions=layers["Conv2d"],
            linears=layers["Linear"],
            operators=(sum(map(graph.in_integers, quantizable)), len(quantizable)),
            float_between=len(between),
            milliseconds=median(others[0]),
            of_float=shares[0],
            of_static=shares[1] if len(shares) > 1 else None,
            sigma=sigma,
            disagreement=disagreement,
            sites=(len(places) - len(wrong), len(places)),
            codes_off=sum(found.differing for _, found in codes) / total,
        )


def cpuinfo(key: str) -> str:
    """Return what Linux says of the processor, "" elsewhere."""
    try:
        said = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"{key}\s*: (.*)", said)
    return found[1] if found else ""


@cache
def instructions() -> set[str]:
    """Return the names of the processor's instruction sets, as Linux has them."""
    return set(cpuinfo("flags").split())


def machine() -> str:
    """Return the processor, its instruction sets that matter, and the versions of what runs."""
    flags = instructions()
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")
    sets = [name for name in wanted if name in flags]
    missing = [name for name in ("avx2", "avx512_vnni") if name not in flags]
    without = f" (without {', '.join(missing)})" if missing else ""
    return (
        f"{cpuinfo('model name') or platform.processor()}: {', '.join(sets)}{without}; "
        f"torch {torch.__version__}, onnxruntime {ort.__version__}, qtool {qtool.__version__}"
    )


def lines(row: Row) -> Iterator[str]:
    """Yield the cells of a row of the table."""
    yield row.network
    yield f"W{row.bits}A{row.bits}"
    for done, of in (row.convolutions, row.linears, row.operators):
        yield f"{done}/{of}"
    yield str(row.float_between)
    yield f"{row.milliseconds:.1f}"
    yield f"{row.of_float:.3f}"
    yield "-" if row.of_static is None else f"{row.of_static:.3f}"
    yield f"{row.sigma:.1e}"
    yield row.disagreement or "yes"
    yield f"{row.sites[0]}/{row.sites[1]}" + (f" ({row.codes_off:.1e})" if row.codes_off else "")


COLUMNS = (
    *("network", "bits", "convolutions", "linear layers", "operators", "float between"),
    *("float, ms", "/ float", "/ static", "off, sigma", "agrees", "sites equal"),
)


def main() -> None:
    """Measure and print a table, or one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    several = [*CONVOLUTIONAL, *TRANSFORMERS]
    parser.add_argument("--networks", default=",".join(several), help="names of torchvision")
    parser.add_argument("--bits", default="8,4", help="of weights and activations")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing, at the most")
    parser.add_argument("--images", type=int, default=64, help="whose logits are compared")
    parser.add_argument("--codes", type=int, default=8, help="images whose codes are compared")
    parser.add_argument("--place", default="every_value")
    parser.add_argument("--no-static", action="store_true", help="do without quantize_static")
    parser.add_argument("--show", action="store_true", help="name float operators and odd codes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine(), flush=True)
    if not options.json:
        print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for name in options.networks.split(","):
        for bits in map(int, options.bits.split(",")):
            try:
                row = measured(name, bits, options)
            except Exception as error:  # the other networks are still worth a row
                print(f"| {name} | W{bits}A{bits} | failed: {error} |", flush=True)
                continue
            text = json.dumps(asdict(row)) if options.json else f"| {' | '.join(lines(row))} |"
            print(text, flush=True)


if __name__ == "__main__":
    main()
