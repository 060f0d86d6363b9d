"""What many tests share: a small recipe and network, ways to run them, and one to be refused."""

import io
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from qtool.cli import main
from qtool.runs.built import build
from qtool.runs.epochs import start_or_resume
from qtool.runs.kept.folder import RunFolder
from qtool.runs.run import Run
from qtool.training.step import TrainingStep

# Two batches of digits, quantized on both sides: an epoch takes a tenth of a second.
RECIPE: dict[str, Any] = {
    "seed": 0,
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "batch_size": 32, "image_size": 16, "train_samples": 64},
    "quantization": {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}},
    "training": {"epochs": 1, "learning_rate": 0.01},
}
ABSENT = object()


def recipe(changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return RECIPE with some keys set, each by its whole name: {"training.epochs": 2}.

    A number in a name is a place in a list, and ABSENT takes a key away.
    """
    made = deepcopy(RECIPE)
    for name, value in (changes or {}).items():
        *sections, key = name.split(".")
        place: Any = made
        for section in sections:
            inner = isinstance(place, list)
            place = place[int(section)] if inner else place.setdefault(section, {})
        if value is ABSENT:
            del place[key]
        else:
            place[key] = deepcopy(value)
    return made


def write_recipe(folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Write r.yaml, RECIPE with some keys set, into a folder; return its path."""
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(recipe(changes), sort_keys=False))
    return path


class Net(nn.Module):
    """Two convolutions with batch norm, one of them with a bias, and a head: [B, 3, H, W] to 5."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu_()
        x = self.bn2(self.conv2(x)).relu()
        return self.fc(x.mean((2, 3)))


def float_net(seed: int = 0) -> Net:
    """Return a Net for inference, whose batch norms have statistics and weights of either sign."""
    torch.manual_seed(seed)
    net = Net()
    for norm in (net.bn1, net.bn2):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return net.eval()


class EnoughError(Exception):
    """Ends a training whose first losses are all that was asked for."""


def first_losses(path: Path, changes: Sequence[str], steps: int, folder: Path) -> list[float]:
    """Return the losses of a recipe's first training steps on the CPU, with `--set` changes."""
    found: list[float] = []
    run = Run(RunFolder(folder), build.load_checked(path, list(changes)), torch.device("cpu"))
    trainer = start_or_resume(run)[0]
    loss = trainer.loss

    def seen(logits: Tensor, labels: Tensor) -> Tensor:
        value = loss(logits, labels)
        found.append(float(value.detach()))
        if len(found) == steps:
            raise EnoughError
        return value

    trainer.loss = seen
    if isinstance(trainer.step, TrainingStep):
        trainer.step.loss = seen
    with pytest.raises(EnoughError):
        trainer.fit(lambda line: None)
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def as_json(text: str) -> Any:
    """Read JSON as the standard has it, which knows no NaN and no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return the bytes of every file in a folder, and None for every folder, by their paths."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def shell(*argv: str) -> tuple[object, str, str]:
    """Run a command; return its exit code, its output and its errors."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main(list(argv))
    return ended.value.code, out.getvalue(), err.getvalue()


def refused(folder: Path, *argv: str, code: int = 2) -> str:
    """Run a wrong command in a folder; return its one message, in which all blanks are one.

    It must end with that exit code, print no result and no traceback, and leave the folder alone.
    """
    before = tree(folder)
    with chdir(folder):
        ended, out, err = shell(*argv)
    assert (ended, out) == (code, ""), err
    assert "Traceback" not in err
    assert tree(folder) == before
    starts = [line for line in err.splitlines() if line.startswith(("error: ", "╭─ Error"))]
    assert len(starts) == 1, err
    message = err[err.index(starts[0]) :]
    return " ".join(word for word in message.split() if word not in "│╭╮╰╯─")


@torch.no_grad()
def evaluate_by_hand(net: nn.Module, prepared: nn.Module, *inputs: Any) -> Any:
    """Evaluate a float network in float64 with the scales of a prepared one, without its layers.

    Weights are rounded to their grid before, inputs of layers as they come; nothing is folded, and
    batch norms have the statistics of the prepared network. Outputs of ReLUs are rounded where the
    layer that reads them would round them again.
    """
    trained = {k: v for k, v in prepared.state_dict().items() if "_quantizer" not in k}
    net = deepcopy(net).eval()
    net.load_state_dict({k: v for k, v in trained.items() if ".quantizers." not in k})
    net.double()

    def rounded(x: Tensor, quantizer: Any) -> Tensor:
        grid, scale = quantizer.grid, quantizer.scale.detach().double()
        zero = quantizer.zero_point.double()
        u = torch.round(x / scale + zero + grid.offset).clamp(grid.qmin, grid.qmax)
        return (u - zero - grid.offset) * scale

    for name, layer in prepared.named_modules():
        if not hasattr(layer, "weight_quantizer"):
            continue
        own = net.get_submodule(name)
        if layer.weight_quantizer is not None:
            own.weight.copy_(rounded(own.weight, layer.weight_quantizer))
        quantizer = layer.quantizer_of_input
        if quantizer is not None:
            own.register_forward_pre_hook(lambda _, args, q=quantizer: (rounded(args[0], q),))
    return net(*[value.double() for value in inputs])


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Let what waits for a CUDA device raise while inside, as far as torch notices."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
