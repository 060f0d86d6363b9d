"""Make the files of this folder with the code of a commit: old files must still mean the same.

    PYTHONPATH=CHECKOUT_OF_THAT_COMMIT python tests/released/make.py tests/released/NAME

Each of RECIPES becomes a run folder that was interrupted after two of four epochs, the metrics of
the same run gone on to its end, and its integer model; `states.pt` holds bare state_dicts of
`small_network()`, each with the logits and codes that it stood for. The learning rate is so small
that no learned scale leaves the reach of its weights, out of which later code brings it back.
"""

import contextlib
import sys
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import torch
import yaml
from torch import nn

SMALL: dict[str, Any] = {
    "seed": 0,
    "model": {"name": "two_linear_layers", "columns": 64, "hidden": 6},
    "data": {"name": "digits", "batch_size": 32, "image_size": 8, "train_samples": 128},
    "training": {
        "epochs": 4,
        "optimizer": {"name": "sgd", "momentum": 0.9},
        "learning_rate": 0.002,
    },
}
RECIPES: dict[str, dict[str, Any]] = {
    "learned": {"weights": {"bits": 4}, "activations": {"bits": 4}},
    "followed": {
        "weights": {"bits": 3, "range": "mse", "refit_every": 3},
        "activations": {"bits": 4, "range": "ema_min_max", "grid": "asymmetric"},
    },
    "frozen": {
        "weights": {"bits": 2, "freezing": {"threshold": 0.05, "momentum": 0.1}},
        "activations": {"bits": 8},
    },
    "blended": {
        "weights": {
            "bits": 3,
            "range": "absmax",
            "blend": {"name": "linear", "start": 0.0, "stop": 1.0, "window": [0.0, 0.4]},
        },
        "activations": {"bits": 8},
    },
}
STATES: dict[str, dict[str, Any]] = {
    **RECIPES,
    "learned offset": {"weights": {"bits": 4}, "activations": {"bits": 4, "grid": "asymmetric"}},
    "relu outputs": {
        "weights": {"bits": 4},
        "activations": {"bits": 4, "place": "relu_outputs"},
    },
    "one bit": {"weights": {"bits": 1}, "activations": {"bits": 1, "grid": "full"}},
}


def small_network() -> nn.Module:
    """Return a network of three layers, with a batch norm and a ReLU that is called once."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def images() -> torch.Tensor:
    """Return what the small network is trained and judged on, [16, 1, 8, 8]."""
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def codes_of(integer: nn.Module) -> dict[str, torch.Tensor]:
    """Return the codes of every integer layer."""
    return {k: v for k, v in integer.state_dict().items() if k.endswith("codes")}


def _make_run(name: str, folder: Path) -> None:
    from qtool.cli import main
    from qtool.training.judging import Judge

    recipe = folder / "r.yaml"
    recipe.write_text(yaml.safe_dump(SMALL | {"quantization": RECIPES[name]}, sort_keys=False))
    run, whole, judged = folder / name, folder / "whole", Judge.validate

    def stop(self: Judge, epoch: int) -> dict[str, Any]:
        if epoch == 2:
            raise KeyboardInterrupt
        return judged(self, epoch)

    def command(*argv: str) -> None:
        with contextlib.chdir(folder), contextlib.suppress(SystemExit):  # no paths of a machine
            main(list(argv))

    Judge.validate = stop
    command("train", "r.yaml", "--run-dir", name, "--device", "cpu")
    Judge.validate = judged
    copytree(run, whole)
    command("train", "r.yaml", "--run-dir", "whole", "--device", "cpu", "--resume")
    command("convert", "whole", "--device", "cpu")
    for file in ("metrics.jsonl", "integer.safetensors"):
        (whole / file).rename(run / f"expected_{file}")
    rmtree(whole)
    recipe.unlink()


def _make_state(section: dict[str, Any]) -> dict[str, Any]:
    import qtool

    model = qtool.prepare(small_network(), section, images()).train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    for step in range(12):
        qtool.set_progress(model, step / 11)
        loss = model(images()).square().mean()
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
    integer = qtool.convert(model.eval())
    with torch.no_grad():
        made = {"logits": model(images()), "integer_logits": integer(images())}
    return {"state_dict": model.state_dict(), "codes": codes_of(integer), **made}


if __name__ == "__main__":
    made_in = Path(sys.argv[1])
    made_in.mkdir(parents=True)
    for each in RECIPES:
        _make_run(each, made_in)
    torch.save(
        {name: _make_state(section) for name, section in STATES.items()}, made_in / "states.pt"
    )
