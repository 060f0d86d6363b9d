"""The step of step_time.py under the quantizers of other libraries, those that are installed.

    pip install -e ".[peers]" && python tests/benchmarks/peers.py

Weights have a scale per channel and activations one per tensor, for every convolution and the
linear layer. The table says how scales come about (`learned` ones are trained, `running statistics`
follow the tensor, `fixed` do neither), how many bits there are, and where activations are
quantized. With --compile, a second table has whole models under torch.compile and qtool with
kernels of its own compiled, all over the compiled float step.
"""

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from peer_models import LSQ, PEERS, Peer
from step_time import Step, make_step, measure, quantization
from torch import Tensor, nn

import qtool
from qtool.models.vision import build_model


def floating(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy that nothing quantizes."""
    return deepcopy(model)


def prepared(model: nn.Module, images: Tensor, place: str, scales: str) -> nn.Module:
    """Return the model under qtool, with learned scales or with those of the first values."""
    section = quantization("straight_through", 4, "learned", place)
    if scales == "fixed":
        for side in section.values():
            side["range"] = "absmax"
        section["weights"]["refit_every"] = 10**9
    return qtool.prepare(model, section, images)


PLAIN = {"float": Peer(floating, "none", 32, "none")}
OURS = {
    f"qtool, {place}, {scales}": Peer(
        partial(prepared, place=place, scales=scales), scales, place=place
    )
    for scales in ("learned", "fixed")
    for place in ("relu_outputs", "layer_inputs")  # the second is where most peers quantize
}


def running(peers: dict[str, Peer], step_of: Callable[[Peer], Step]) -> dict[str, Step]:
    """Return the steps of peers that run here, and say why others do not."""
    steps = {}
    for name, peer in peers.items():
        try:
            step = step_of(peer)
            step()
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"{name} does not run here: {reason}")
        else:
            steps[name] = step
    return steps


def table(peers: dict[str, Peer], found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Print what was found, and return it with what each peer is."""
    print(f"\n{'':39} {'scales':20} bits {'activations at':14} {'ms':>8}  x float")
    rows = []
    for name, row in found.items():
        peer = peers[name]
        spread = " to ".join(f"{value:.2f}" for value in row["spread"])
        print(f"{name:39} {peer.scales:20} {peer.bits:4} {peer.place:14}", end=" ")
        print(f"{row['ms']:8.1f} {row['ratio']:8.3f}  {spread}")
        about = {"scales": peer.scales, "bits": peer.bits, "place": peer.place}
        rows.append({"name": name, **about, **row})
    return rows


def main() -> None:
    """Measure what is installed, and print tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    images = torch.randn(given.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (given.batch,))
    network = build_model("resnet20", 10, 3, 32).model
    network = network.to(memory_format=torch.channels_last)

    def step_of(peer: Peer) -> Step:
        return make_step(peer.make(network, images), images, labels, peer.way)

    sets = [PLAIN | OURS | PEERS]
    if given.compile:
        whole = PLAIN | OURS | {LSQ: PEERS[LSQ]}
        whole = {name: replace(peer, way="whole_model") for name, peer in whole.items()}
        own = {f"{name}, kernels": replace(peer, way="kernels") for name, peer in OURS.items()}
        sets.append(whole | own)
    steps = []
    for peers in sets:
        found = measure(running(peers, step_of), given.rounds, images.device)
        steps.append(table(peers, found))
    about = {"torch": torch.__version__, **vars(given)}
    print(json.dumps({"about": about, "eager": steps[0], "compiled": steps[1:]}))


if __name__ == "__main__":
    main()
