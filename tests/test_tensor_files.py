"""Files of tensors: their sizes are held against the file, and what they hold is what it seems."""

import io
import pickle
import zipfile
from typing import Any

import pytest
import torch

from qtool import tensor_files
from qtool.tensor_files import read_torch


def saved(data: Any, **how: Any) -> io.BytesIO:
    torch.save(data, made := io.BytesIO(), **how)
    made.seek(0)
    return made


@pytest.mark.parametrize("new", [True, False], ids=["zip", "of before 1.6"])
def test_what_was_saved_is_read(new: bool) -> None:
    shared = torch.arange(6.0)
    data = {"a": shared, "b": shared.view(2, 3).t(), "c": [1, "x", (2.5, None)], "d": shared[2:3]}
    found: Any = read_torch(saved(data, _use_new_zipfile_serialization=new))
    assert found["c"] == data["c"]
    for name in "abd":
        torch.testing.assert_close(found[name], data[name], rtol=0, atol=0)


def laughs(levels: int) -> list[Any]:
    made: list[Any] = ["x"]
    for _ in range(levels):
        made = [made] * 10
    return made


def deep(levels: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(levels):
        made = [made]
    return made


def endless() -> list[Any]:
    made: list[Any] = []
    made.append({"again": made})
    return made


BOMBS: dict[str, tuple[Any, str]] = {
    "a number as a trillion": ({"w": torch.zeros(1).expand(10**12)}, "4,000,000,000,000 bytes"),
    "a tensor under many names": (
        {str(k): t for t in [torch.zeros(25_000)] for k in range(100)},
        "its tensors take 10,000,000 bytes, which its size cannot hold",
    ),
    "lists of one list": (laughs(12), "it holds more than 2,000,000 values, or 64 levels"),
    "lists in lists": (deep(100), "it holds more than 2,000,000 values, or 64 levels"),
    "a list that holds itself": (endless(), "it holds itself"),
}


@pytest.mark.parametrize("new", [True, False], ids=["zip", "of before 1.6"])
@pytest.mark.parametrize(("data", "why"), BOMBS.values(), ids=BOMBS.keys())
def test_what_a_file_cannot_hold_is_refused(data: Any, why: str, new: bool) -> None:
    with pytest.raises(ValueError, match=why):
        read_torch(saved(data, _use_new_zipfile_serialization=new))


def test_more_plain_data_than_a_checkpoint_has_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"a": ["x" * k for k in range(2000)]}
    monkeypatch.setattr(tensor_files, "MOST_PICKLED", 10_000)
    monkeypatch.setattr(tensor_files, "MOST_READS", 1000)
    with pytest.raises(ValueError, match="bytes beside its tensors"):
        read_torch(saved(data))
    with pytest.raises(ValueError, match="it holds too much beside its tensors"):
        read_torch(saved(data, _use_new_zipfile_serialization=False))


class Payload:
    def __reduce__(self) -> Any:
        return eval, ("__import__('pathlib').Path('pwned').touch()",)


@pytest.mark.parametrize("new", [True, False], ids=["zip", "of before 1.6"])
def test_nothing_in_a_file_is_run(
    new: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError):
        read_torch(saved({"w": Payload()}, _use_new_zipfile_serialization=new))
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_larger_than_its_bytes_is_refused() -> None:
    """The pickle names 10,000 numbers where the archive has 10."""
    given, made = saved({"w": torch.arange(10_000.0)}), io.BytesIO()
    with zipfile.ZipFile(given) as old, zipfile.ZipFile(made, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            new.writestr(item.filename, data[:40] if item.filename.endswith("data/0") else data)
    made.seek(0)
    with pytest.raises((RuntimeError, ValueError)):
        read_torch(made)
