"""A file and the one before it: killed at any moment, one that is sound stands under its name."""

import hashlib
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from qtool.errors import DamagedFileError
from qtool.files import checksums
from qtool.files.checksums import NewestAndPrevious

OPERATIONS = ("replace", "link", "unlink", "fsync", "rename", "open")


def archive(text: str, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("text", text)


def text_of(path: Path) -> str:
    with NewestAndPrevious.of(path).opened(path) as (file, _), zipfile.ZipFile(file) as found:
        return found.read("text").decode()


def pair_in(folder: Path, *texts: str) -> NewestAndPrevious:
    pair = NewestAndPrevious(folder / "c.pt")
    for text in texts:
        pair.write(partial(archive, text))
    return pair


def flip(path: Path, place: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if place < 0 else place] ^= 4
    path.write_bytes(data)


def test_two_files_and_their_digests_are_kept_as_sha256sum_writes_them(tmp_path: Path) -> None:
    pair = pair_in(tmp_path, "one")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pt", "c.pt.sha256"]
    pair = pair_in(tmp_path, "two", "three")
    assert [text_of(pair.newest), text_of(pair.previous)] == ["three", "two"]
    expected = [
        f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}"
        for name in ("c.pt", "c.previous.pt")
    ]
    assert pair.digests.read_text().splitlines() == expected
    assert NewestAndPrevious.of(pair.previous) == NewestAndPrevious.of(pair.newest) == pair


class KilledError(BaseException):
    """Stands for a kill: nothing that comes after it happens."""


def killed_at(moment: int, *, after: bool, write: Callable[[], object]) -> bool:
    """Write until an operation on files, and nothing from there on; tell whether it got there."""
    seen = 0

    def counted(operation: Callable[..., Any], *args: Any, **options: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen > moment or (seen == moment and not after):
            raise KilledError
        try:
            return operation(*args, **options)
        finally:
            if seen == moment:
                raise KilledError

    with pytest.MonkeyPatch.context() as patch:
        for name in OPERATIONS:
            patch.setattr(os, name, partial(counted, getattr(os, name)))
        try:
            write()
        except KilledError:
            return True
    return False


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("old", ["digests", "no digests", "a damaged newest"])
def test_a_kill_at_any_moment_leaves_a_sound_file(old: str, after: bool, tmp_path: Path) -> None:
    moment, seen = 0, set()
    while True:
        moment += 1
        folder = tmp_path / str(moment)
        folder.mkdir()
        pair = pair_in(folder, "one", "two")
        if old == "no digests":
            pair.digests.unlink()
            pair.previous.unlink()
        elif old == "a damaged newest":
            flip(pair.newest)
        killed = killed_at(moment, after=after, write=lambda: pair_in(folder, "three"))  # noqa: B023 - used at once
        sound = [p for p in (pair.newest, pair.previous) if pair.digest_if_sound(p) is not None]
        texts = tuple(text_of(path) for path in sound)
        seen.add(texts)
        if old == "a damaged newest":
            assert texts in {("one",), ("three", "one")}
        else:
            assert texts[0] in ("two", "three")
            assert pair.newest in sound
        if not killed:
            break
    last = ("three", "one" if old == "a damaged newest" else "two")
    assert texts == last
    assert moment > 5
    assert len(seen) > 1


def test_a_flipped_bit_anywhere_is_told(tmp_path: Path) -> None:
    pair = pair_in(tmp_path, "one", "two")
    for place in range(0, pair.newest.stat().st_size, 7):
        flip(pair.newest, place)
        with (
            pytest.raises(DamagedFileError, match="not what was written"),
            pair.opened(pair.newest),
        ):
            pass
        assert text_of(pair.previous) == "one"
        flip(pair.newest, place)
    assert text_of(pair.newest) == "two"


def test_without_digests_the_archive_says_what_is_damaged(tmp_path: Path) -> None:
    pair = pair_in(tmp_path, "one" * 100)
    pair.digests.unlink()
    assert text_of(pair.newest) == "one" * 100
    flip(pair.newest)
    assert pair.digest_if_sound(pair.newest) is None
    pair.newest.write_bytes(b"no archive")
    assert pair.digest_if_sound(pair.newest) is None


def test_a_list_that_says_nothing_counts_as_none(tmp_path: Path) -> None:
    pair = pair_in(tmp_path, "one")
    pair.digests.write_text("of another tool\n")
    assert text_of(pair.newest) == "one"


def test_a_new_pair_in_the_middle_of_reading_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = pair_in(tmp_path, "one")
    listed = NewestAndPrevious._listed

    def written_meanwhile(self: NewestAndPrevious) -> set[str] | None:
        monkeypatch.setattr(NewestAndPrevious, "_listed", listed)
        pair_in(tmp_path, "two", "three")
        return listed(self)

    monkeypatch.setattr(NewestAndPrevious, "_listed", written_meanwhile)
    assert text_of(pair.newest) == "three"


def test_where_a_file_has_no_second_name_it_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise PermissionError(1, "not on this file system")

    monkeypatch.setattr(checksums.os, "link", no_links)
    pair = pair_in(tmp_path, "one", "two")
    assert [text_of(pair.newest), text_of(pair.previous)] == ["two", "one"]
