"""What a zip archive says that it holds is held against its size before it is unpacked."""

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from qtool.files import archives


def contents_of(path: Path, *, stored: bool = False) -> dict[str, int]:
    with path.open("rb") as file:
        found = archives.contents_of(file, stored=stored)
        assert file.tell() == 0
        return found


def archive(path: Path, files: dict[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return path


def test_sizes_are_what_is_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.zip", {"a": bytes(1000), "b": b"xyz"})
    assert contents_of(path) == {"a": 1000, "b": 3}


def test_a_checkpoint_of_torch_is_as_it_is(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(100.0)}, tmp_path / "x.pt")
    assert contents_of(tmp_path / "x.pt", stored=True)["x/data/0"] == 400
    path = archive(tmp_path / "y.pt", {"y/data/0": bytes(400) * 3})
    with pytest.raises(ValueError, match="its contents take 1,200 bytes, as it says, and it has"):
        contents_of(path, stored=True)
    path = archive(tmp_path / "y.pt", {"y/data/0": b"a"})
    with pytest.raises(ValueError, match="its contents are packed, which no checkpoint is"):
        contents_of(path, stored=True)


def test_a_few_bytes_are_no_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE", 2**20)
    path = archive(tmp_path / "x.zip", {"a": bytes(2**21)})
    with pytest.raises(ValueError, match="its contents take 2,097,152 bytes"):
        contents_of(path)


def test_bytes_that_are_named_many_times_count_as_often(tmp_path: Path) -> None:
    """Overlapping files: one entry of the list, written again under other names."""
    data = archive(tmp_path / "x.zip", {"a": bytes(4000)}, zipfile.ZIP_STORED).read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry = data[start:end]
    names = [bytes([letter]) for letter in b"abcdefgh"]
    listed = b"".join(entry[:46] + name + entry[47:] for name in names)
    closing = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 8, 8, len(listed), start, 0)
    (tmp_path / "x.zip").write_bytes(data[:start] + listed + closing)
    with pytest.raises(ValueError, match="its contents take 32,000 bytes"):
        contents_of(tmp_path / "x.zip", stored=True)


def test_a_list_larger_than_its_limit_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_LISTED", 1000)
    path = archive(tmp_path / "x.zip", {str(k): b"" for k in range(100)})
    with pytest.raises(ValueError, match="its list of contents takes 4,790 bytes"):
        contents_of(path)
    torch.save({str(k): torch.zeros(1) for k in range(100)}, buffer := io.BytesIO())
    path.write_bytes(buffer.getvalue())  # with the record of large archives
    with pytest.raises(ValueError, match="its list of contents takes"):
        contents_of(path, stored=True)


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\x05\x06" + bytes(17), b"x" * 100])
def test_what_is_no_archive_is_refused(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(ValueError, match="no zip archive"):
        contents_of(tmp_path / "x.zip")
