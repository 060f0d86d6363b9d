"""For all tests: one thread, and Hypothesis without a deadline, as machines may be busy."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # in child processes too: cores are shared with other tests

import pytest
import torch
from hypothesis import settings

from qtool.export.proof import latency

torch.set_num_threads(1)  # small tensors gain nothing from more, and lose much on a busy core
settings.register_profile("qtool", deadline=None)
settings.load_profile("qtool")


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports do without the float file, half of their time, that they are timed against."""
    monkeypatch.setattr(latency, "export_float", lambda model, image, path, batch: None)
    monkeypatch.setattr(
        latency, "latencies", lambda paths, image, runtime, threads=1: [1.0 for _ in paths]
    )
