"""model.safetensors: what other tools read of a run, under the float network's own names."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import qtool
from qtool import pipeline
from qtool.files.checksums import sha256_of
from qtool.graph.attention import held_by_attention
from qtool.models.vision import rebuild_model
from qtool.runs.kept.weights import float_weights
from tests.kit import shell, write_recipe

QUICK = {"training.epochs": 2, "data.train_samples": 32}


def test_a_trained_run_has_its_weights_beside_the_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    path = write_recipe(tmp_path, QUICK)
    pipeline.train(path, run_dir=run, device="cpu")
    network = rebuild_model(
        "lenet5", {"classes": 10, "channels": 1, "image_size": 16, "params": {}}
    )
    found = load_file(run / "model.safetensors")
    network.load_state_dict(found)  # every name, and no other
    kept = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    assert all(torch.equal(value, kept[name]) for name, value in found.items())
    with safe_open(run / "model.safetensors", "pt") as file:
        said = file.metadata()
    assert said["format"] == "pt"  # which other libraries ask for
    assert said["made_of"] == sha256_of(run / "checkpoint.pt")
    start = ["--set", f"model.weights={run / 'model.safetensors'}", "--set", "training.epochs=1"]
    code, _, err = shell("train", str(path), "--run-dir", str(tmp_path / "next"), *start)
    assert code in (0, None), err


def test_what_goes_on_has_no_weights_of_an_earlier_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    path = write_recipe(tmp_path, QUICK)
    pipeline.train(path, run_dir=run, device="cpu")
    (run / "checkpoint.pt").unlink()  # so that it goes on from the one before

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qtool.training.loop.Trainer.fit", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(path, run_dir=run, device="cpu", resume=True)
    assert not (run / "model.safetensors").exists()


class Attends(nn.Module):
    """Attention of one tensor to itself, and of one to another."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)
        self.other = nn.MultiheadAttention(8, 2, kdim=4, vdim=4, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attention(x, x, x, need_weights=False)[0]
        x = x + self.cross(x, x.relu(), x.relu(), need_weights=False)[0]
        x = x + self.other(x, x[..., :4], x[..., :4], need_weights=False)[0]
        return self.head(x)


def test_projections_of_attention_have_their_own_names() -> None:
    torch.manual_seed(0)
    float_model = Attends().eval()
    expected = {name: value.clone() for name, value in float_model.state_dict().items()}
    x = torch.randn(2, 5, 8)
    prepared = qtool.prepare(float_model, {"weights": {"bits": 8}, "activations": {"bits": 8}}, x)
    state = prepared.state_dict()
    assert any(name not in state for name in expected)
    assert held_by_attention(state).keys() >= expected.keys() - state.keys()
    found = float_weights(state, expected)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
