"""What the recorder writes of a weight that is moved by hand."""

import pytest
import torch
from torch import nn

import qtool
from qtool.errors import InputError
from qtool.runs.kept import changes
from qtool.runs.kept.changes import ChangeRecorder, read_record
from qtool.runs.kept.folder import RunFolder

# levels -3, -1, 1 and 3; as integers of the grid -1, 0, 1 and 2
FIXED = {"bits": 2, "grid": "mid_rise", "range": {"name": "fixed", "scale": 2.0}}


@pytest.fixture
def model():
    net = qtool.prepare(nn.Sequential(nn.Linear(4, 1, bias=False)), {"weights": FIXED})
    put(net, [-1.0, 1.0, 1.0, 3.0])
    return net


def put(model, weights):
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([weights]))


def say(recorder, classes):
    recorder.validated(nn.functional.one_hot(torch.tensor(classes), 3), torch.tensor([0, 1]))


def two_epochs(model, folder, stopped=False):
    recorder = ChangeRecorder(model, folder, 0)
    recorder.before_step(0)
    put(model, [1.0, 1.0, 1.0, 3.0])
    recorder.before_step(1)
    put(model, [-1.0, 1.5, 1.0, 3.0])
    say(recorder, [2, 1])
    recorder.end_epoch(1, 2)
    if stopped:
        put(model, [0.0, 0.0, 0.0, 0.0])
        recorder.before_step(3)  # what is lost when the run is stopped
        recorder.end_epoch(2, 4)
        put(model, [-1.0, 1.5, 1.0, 3.0])
        recorder = ChangeRecorder(model, folder, 1)
    recorder.before_step(2)
    put(model, [-1.0, 1.5, -2.5, 3.0])
    recorder.before_step(3)
    say(recorder, [0, 0])
    recorder.end_epoch(2, 4)
    return read_record(folder, 2)


@pytest.mark.parametrize("stopped", [False, True])
def test_every_change_has_its_place_its_code_and_its_step(model, tmp_path, stopped):
    record = two_epochs(model, RunFolder(tmp_path), stopped)
    layer = record.layers["0"]
    assert layer.start.tolist() == [0, 1, 1, 2]
    assert layer.index.tolist() == [0, 0, 2]
    assert layer.code.tolist() == [1, 0, -1]
    assert layer.step.tolist() == [1, 2, 3]
    assert layer.codes.tolist() == [[0, 1, 1, 2], [0, 1, 1, 2], [0, 1, -1, 2]]
    assert layer.weights[1].tolist() == [-1.0, 1.5, 1.0, 3.0]
    assert layer.path.tolist() == [0.0, 2 + 2 + 0.5, 4.5 + 3.5]
    assert float(layer.scale) == 2.0
    assert [line.tolist() for line in record.predictions] == [[2, 1], [0, 0]]
    assert [line.tolist() for line in record.labels] == [[0, 1], [0, 1]]


def test_of_a_large_layer_an_even_sample_is_watched(model, tmp_path, monkeypatch):
    monkeypatch.setattr(changes, "WATCHED", 2)
    layer = two_epochs(model, RunFolder(tmp_path)).layers["0"]
    assert layer.codes.tolist() == [[0, 1], [0, 1], [0, -1]]
    assert layer.index.tolist() == [0, 0, 1]
    assert layer.path.tolist() == [0.0, 4.0, 4.0 + 3.5]


def test_a_record_that_is_missing_or_damaged_says_what_to_do(model, tmp_path):
    with pytest.raises(InputError, match=rf"no such record; delete {tmp_path} to train it anew"):
        ChangeRecorder(model, RunFolder(tmp_path), 3)
    two_epochs(model, RunFolder(tmp_path))
    (tmp_path / "changes" / "epoch-1.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(InputError, match=r"epoch-1\.safetensors: damaged"):
        read_record(RunFolder(tmp_path), 2)
