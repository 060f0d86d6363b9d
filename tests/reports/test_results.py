"""Result files: written in the order of their keys, and refused by name where damaged."""

import json
from pathlib import Path

import pytest

from qtool.errors import InputError
from qtool.reports.exports import Latency
from qtool.reports.results import EpochLine, Summary, read

SUMMARY = {
    "status": "finished",
    "run": "runs/a",
    "epochs": 2,
    "seconds": 1.5,
    "parameters": 10,
    "weight_bits_mean": 4.0,
    "validation_accuracy": None,
    "validation_loss": 0.25,
    "train_accuracy": None,
    "train_loss": 0.5,
}


def written(folder: Path, data: object, name: str = "summary.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(data))
    return path


def test_a_result_is_written_with_the_keys_that_were_set_in_the_order_of_its_fields(tmp_path):
    shuffled = dict(reversed(SUMMARY.items()))
    Summary.model_validate(shuffled).write(tmp_path / "s.json")

    assert list(json.loads((tmp_path / "s.json").read_text())) == list(SUMMARY)
    assert json.loads((tmp_path / "s.json").read_text()) == SUMMARY  # no profile, no error
    explicit = Summary.model_validate(SUMMARY | {"profile": None})
    assert explicit.to_json()["profile"] is None


def test_what_a_newer_version_adds_is_kept(tmp_path):
    path = written(tmp_path, SUMMARY | {"energy": {"joules": 3}})

    assert Summary.read(path).to_json() == SUMMARY | {"energy": {"joules": 3}}


def test_a_whole_number_stays_one_where_seconds_may_be_either():
    assert json.dumps(Summary.model_validate(SUMMARY | {"seconds": 0}).to_json()["seconds"]) == "0"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({"epochs": ...}, "damaged, it has no epochs"),
        ({"epochs": ..., "run": ...}, "damaged, it has no run, epochs"),
        ({"train_loss": "low"}, "damaged, train_loss: "),
        ({"status": "asleep"}, "damaged, status: "),
    ],
    ids=["a key", "two keys", "a number", "a choice"],
)
def test_a_damaged_result_is_refused_with_its_file_and_what_is_wrong(tmp_path, damage, words):
    data = {key: value for key, value in (SUMMARY | damage).items() if value is not ...}
    path = written(tmp_path, data)

    with pytest.raises(InputError) as refused:
        Summary.read(path)
    assert str(refused.value).startswith(f"{path}: {words}")


@pytest.mark.parametrize(
    ("data", "words"), [([1], "holds no JSON object"), ({"a": 1}, "no result of qtool")]
)
def test_a_file_that_holds_no_result_is_refused(tmp_path, data, words):
    with pytest.raises(InputError, match=words):
        read(written(tmp_path, data))


def test_frozen_results_are_not_changed():
    with pytest.raises(ValueError, match="frozen"):
        Summary.model_validate(SUMMARY).epochs = 3


def test_times_keep_the_name_that_python_takes_for_itself():
    times = Latency.model_validate({"float": 2.0, "exported": 1.0})

    assert (times.float_, times.exported) == (2.0, 1.0)
    assert times.to_json() == {"float": 2.0, "exported": 1.0}


def test_a_line_of_metrics_has_the_keys_of_metrics_jsonl_and_only_those_that_were_measured():
    line = EpochLine(
        seconds=1.0,
        epoch=1,
        step=4,
        validation_accuracy=0.5,
        validation_loss=1.0,
        train_loss=2.0,
        train_accuracy=None,
        learning_rate=0.1,
    )

    assert list(line.to_json()) == [
        *("epoch", "step", "train_loss", "train_accuracy", "learning_rate"),
        *("validation_loss", "validation_accuracy", "seconds"),
    ]
