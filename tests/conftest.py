"""For all tests: one thread, and Hypothesis without a deadline, as machines may be busy."""

import copy
import functools
import os
import signal
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # in child processes too: cores are shared with other tests

import pytest
import torch
from hypothesis import settings

from qtool.export.proof import latency
from qtool.numerics.estimators import ESTIMATORS
from qtool.settings import user_parts

torch.set_num_threads(1)  # small tensors gain nothing from more, and lose much on a busy core
# a shell ignores these in what it starts in the background, and so would all that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
for ending in ("SIGHUP", "SIGTERM"):
    if hasattr(signal, ending):
        signal.signal(getattr(signal, ending), signal.SIG_DFL)
settings.register_profile("qtool", deadline=None)
settings.load_profile("qtool")


@pytest.fixture(scope="session", autouse=True)
def one_table_of_operators() -> Iterator[None]:
    """Let torch read the operators that it exports once, not anew (1 s) for each of many files."""
    from torch._export import utils
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    whole = functools.cache(ONNXRegistry.from_torchlib)

    def table(*opset: int, **named: int) -> ONNXRegistry:
        found = copy.copy(whole(*opset, **named))
        found.functions = {name: list(made) for name, made in found.functions.items()}
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(table))
        if hasattr(utils, "_materialize_cpp_cia_ops"):
            once = functools.cache(utils._materialize_cpp_cia_ops)
            patch.setattr(utils, "_materialize_cpp_cia_ops", once)
        yield


@pytest.fixture(autouse=True)
def estimators_go_with_their_test() -> Iterator[None]:
    """Take out of the table what a test put there, such as the estimator of a user's file."""
    tables = [ESTIMATORS._members, ESTIMATORS._facts, user_parts._SOURCES]
    known = [set(table) for table in tables]
    yield
    for table, names in zip(tables, known, strict=True):
        for name in set(table) - names:
            del table[name]


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports do without the float file, half of their time, that they are timed against."""
    monkeypatch.setattr(latency, "export_float", lambda model, image, path, batch: None)
    monkeypatch.setattr(
        latency, "latencies", lambda paths, image, runtime, threads=1: [1.0 for _ in paths]
    )
