"""A checkpoint goes on where there are fewer GPUs, more of them, or none."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qtool.models.architecture import OwnArchitecture
from qtool.runs.kept import checkpoint
from qtool.runs.kept.checkpoint import Checkpoint


def kept(generators: int) -> Checkpoint:
    """Return a checkpoint of a machine with so many GPUs; generator k's state is k everywhere."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    architecture = OwnArchitecture(classes=2, image_size=8, channels=1, params={})
    made = checkpoint.take(model, optimizer, [], architecture)
    made.random["cuda"] = [torch.full((16,), k, dtype=torch.uint8) for k in range(generators)]
    return made


@pytest.mark.parametrize("there", [0, 1, 4])
@pytest.mark.parametrize("here", [0, 1, 2, 8])
def test_as_many_generators_are_set_as_both_machines_have(
    there: int, here: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_to: dict[int, int] = {}

    def set_rng_state(state: Tensor, device: int) -> None:
        assert device < here
        assert state.device.type == "cpu"
        set_to[device] = int(state[0])

    checkpoint.save(kept(there), tmp_path / "checkpoint.pt")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here)
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_rng_state)
    found = checkpoint.load(tmp_path / "checkpoint.pt", torch.device("cpu"))
    model = nn.Linear(2, 2)
    torch.manual_seed(7)
    found.restore(model, torch.optim.SGD(model.parameters(), 0.1))
    assert set_to == {k: k for k in range(min(there, here))}
    assert torch.equal(torch.get_rng_state(), found.random["cpu"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_generators_of_more_gpus_than_there_are_restore_those_that_are() -> None:
    made = kept(0)
    states = torch.cuda.get_rng_state_all()
    made.random["cuda"] = states * 4
    expected = torch.rand(3, device="cuda")
    model = nn.Linear(2, 2)
    made.restore(model, torch.optim.SGD(model.parameters(), 0.1))
    assert torch.equal(torch.rand(3, device="cuda"), expected)
