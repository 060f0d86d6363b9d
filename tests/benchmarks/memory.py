"""How much memory a training step takes: float, quantized by qtool, and by torch's own kernels.

    python tests/benchmarks/memory.py --estimators straight_through,hyperbolic_tangent

Each variant runs in a process of its own. `saved` is what the step keeps for its backward pass:
bytes of the storages that autograd holds, each once, parameters left out. `peak` is the most memory
that the process has in a step, over what it has before the network is there: first where what is
freed goes back to the system at once, then as it usually is, the median over processes; there
glibc's heap keeps gaps that differ from run to run. Variant torch_fixed rounds the inputs and
weights of layers by torch.fake_quantize_per_tensor_affine and fake_quantize_per_channel_affine,
with scales that stay as they are. Images are random. Needs Linux.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from step_time import make_parser, quantization
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.utils import parametrize

import qtool
from qtool.models.vision import build_model
from qtool.training.optimizers import OPTIMIZERS, parameter_groups

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "131072"}  # set, it no longer grows with what is freed


class FixedWeight(nn.Module):
    """torch's own rounding of a weight, one scale for each output channel."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.high = 2 ** (bits - 1) - 1
        self.register_buffer("scale", weight.detach().flatten(1).abs().amax(1) / self.high)
        self.register_buffer("zero", torch.zeros(len(weight), dtype=torch.int32))

    def forward(self, weight: Tensor) -> Tensor:
        return torch.fake_quantize_per_channel_affine(
            weight, self.get_buffer("scale"), self.get_buffer("zero"), 0, -self.high, self.high
        )


def round_as_torch_does(model: nn.Module, bits: int, images: Tensor) -> nn.Module:
    """Put torch's own fixed rounding before every layer and on its weight, in place."""
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    bounds: dict[nn.Module, tuple[float, int, int]] = {}

    def look(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        signed = bool(args[0].min() < 0)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        bounds[layer] = (float(args[0].abs().max()) / high, low, high)

    def quantize(layer: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        scale, low, high = bounds[layer]
        return torch.fake_quantize_per_tensor_affine(args[0], scale, 0, low, high)

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    for layer in layers:
        layer.register_forward_pre_hook(quantize)
        fixed = FixedWeight(layer.get_parameter("weight"), bits)
        parametrize.register_parametrization(layer, "weight", fixed)
    return model


def make_variant(name: str, given: argparse.Namespace, network: nn.Module, images: Tensor) -> Any:
    """Return the model of a variant: float, torch_fixed, or the name of an estimator."""
    if name == "float":
        return network
    if name == "torch_fixed":
        return round_as_torch_does(network, given.bits, images)
    section = quantization(name, given.bits, given.range, given.place)
    return qtool.prepare(network, section, images)


def resident(key: str) -> int:
    """Return bytes of this process: VmRSS now, VmHWM at most."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def saved_bytes(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Return the bytes that a forward pass keeps for the backward pass."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(images), labels)
    found = sum(sizes.values())
    loss.backward()
    return found


def measure(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Return what a variant takes, measured in this process."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    shape = (given.batch, 3, given.image_size, given.image_size)
    images = torch.randn(shape).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (given.batch,))
    # before preparing, as that runs the network once and leaves memory behind that a step takes up
    base = resident("VmRSS")
    network = build_model(given.model, 10, 3, given.image_size).model
    network = network.to(memory_format=torch.channels_last)
    model = make_variant(name, given, network, images).train()
    optimizer = OPTIMIZERS.build("sgd")(parameter_groups(model), 1e-3)
    CLEAR.write_text("5")  # VmHWM begins again, at what is resident now
    peaks = []
    for _ in range(given.steps):
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        peaks.append(resident("VmHWM") - base)
        CLEAR.write_text("5")
    saved = saved_bytes(model, images, labels)
    return {"saved": saved, "peak": max(peaks)}


def in_a_process(name: str, settings: dict[str, str]) -> dict[str, Any]:
    """Return what a variant takes, measured in a new process with environment variables."""
    command = [sys.executable, __file__, *sys.argv[1:], "--variant", name]
    ended = subprocess.run(
        command, env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(ended.stdout)


def main() -> None:
    """Measure, and print a table and one line of JSON."""
    parser = make_parser(__doc__ or "")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--estimators", default="straight_through,hyperbolic_tangent")
    parser.add_argument("--variant", help="Measure this one only, and print its JSON.")
    given = parser.parse_args()
    if given.variant:
        print(json.dumps(measure(given.variant, given)))
        return
    found: dict[str, dict[str, Any]] = {}
    for name in ("float", *given.estimators.split(","), "torch_fixed"):
        row = found[name] = in_a_process(name, AT_ONCE)
        row["usual_peaks"] = [in_a_process(name, {})["peak"] for _ in range(given.repeats)]
        row["usual_peak"] = median(row["usual_peaks"])
        figures = [
            f"{key.replace('_', ' ')} {row[key] / 2**20:6.1f} MiB"
            f" ({row[key] / found['float'][key]:.2f} x float)"
            for key in ("saved", "peak", "usual_peak")
        ]
        spread = " to ".join(f"{f(row['usual_peaks']) / 2**20:.0f}" for f in (min, max))
        print(f"{name:20} {'  '.join(figures)}  {spread}", flush=True)
    about = {"torch": torch.__version__, "machine": platform.machine(), **vars(given)}
    print(json.dumps({"about": about, "steps": found}))


if __name__ == "__main__":
    main()
