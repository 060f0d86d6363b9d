"""What a file must be, byte for byte: SHA-256, kept beside it and compared whenever it is opened.

A file that is written again and again leaves the one before it: NAME.pt and NAME.previous.pt, and
the digests of both in NAME.pt.sha256, as `sha256sum` writes and checks them. Each of the two counts
as sound if that file lists its digest, under whichever name: so there is no moment between the
writes at which a kill would leave a good file that its digest denies.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import copyfile
from typing import BinaryIO

from qtool.errors import DamagedFileError
from qtool.files.archives import contents_of
from qtool.files.whole import write_atomically, write_text

_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_MOST = 2**16  # bytes that are read of a list of two digests
_TRIES = 3  # another process may put a new file, and its digest, in place meanwhile
NOT_AS_WRITTEN = "damaged, it is not what was written (SHA-256)"


@dataclass(frozen=True)
class NewestAndPrevious:
    """A file, the one that it replaced, and the digests of both; `newest` names them all."""

    newest: Path

    @classmethod
    def of(cls, path: Path) -> "NewestAndPrevious":
        """Return the two files that a file is one of."""
        stem, dot, ending = path.name.rpartition(".previous.")
        return cls(path.with_name(f"{stem}.{ending}") if dot and stem else path)

    @property
    def previous(self) -> Path:
        """The file that was there before."""
        return self.newest.with_name(f"{self.newest.stem}.previous{self.newest.suffix}")

    @property
    def digests(self) -> Path:
        """Where the digests of both stand."""
        return self.newest.with_name(f"{self.newest.name}.sha256")

    def write(self, write: Callable[[Path], object]) -> str:
        """Put a new file in place, and keep the one before unless that is damaged.

        A kill at any moment leaves a newest file that can be read, the old one or the new.

        Args:
            write: writes the file under the name that it is given.

        Returns:
            The new file's SHA-256.

        Raises:
            InputError: If the files cannot be written there.
        """
        made = ""

        def write_after_its_digest(temporary: Path) -> None:
            nonlocal made
            write(temporary)
            made = sha256_of(temporary)
            listed = {self.newest.name: made}
            before = self.digest_if_sound(self.newest)
            if before is not None:
                write_atomically(self.previous, partial(_same_file, self.newest))
            else:
                before = self.digest_if_sound(self.previous)
            if before is not None:
                listed[self.previous.name] = before
            lines = [f"{digest}  {name}\n" for name, digest in listed.items()]
            write_text(self.digests, "".join(lines))

        write_atomically(self.newest, write_after_its_digest)
        return made

    def digest_if_sound(self, path: Path) -> str | None:
        """Return the SHA-256 of one of the two; None where it is missing or damaged."""
        try:
            with self.opened(path) as (_, digest):
                return digest
        except (OSError, DamagedFileError):
            return None

    @contextmanager
    def opened(self, path: Path) -> Iterator[tuple[BinaryIO, str]]:
        """Open one of the two; what is read from it is what was checked.

        A file without digests is of before they were kept, or came alone: it must be a zip archive,
        as torch writes them, and the checksums in that are compared.

        Yields:
            The file, at its beginning, and its SHA-256.

        Raises:
            OSError: If it cannot be opened.
            DamagedFileError: If it is not what was written.
        """
        file, digest = self._checked(path)
        with file:
            yield file, digest

    def _checked(self, path: Path) -> tuple[BinaryIO, str]:
        for last in [False] * (_TRIES - 1) + [True]:
            file = path.open("rb")
            try:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(0)
                listed = self._listed()
                sound = _zip_is_sound(file) if listed is None else digest in listed
                file.seek(0)
                if sound:
                    return file, digest
                replaced = not os.path.samestat(os.fstat(file.fileno()), path.stat())
            except BaseException:
                file.close()
                raise
            file.close()
            if last or not replaced:
                break
        raise DamagedFileError(f"{path}: {NOT_AS_WRITTEN}")

    def _listed(self) -> set[str] | None:
        """Return the digests that either file may have; None where none were kept."""
        try:
            with self.digests.open("rb") as file:
                text = file.read(_MOST).decode(errors="replace")
        except FileNotFoundError:
            return None
        found = [_LINE.fullmatch(line) for line in text.splitlines()]
        return {line[1] for line in found if line} or None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _same_file(source: Path, target: Path) -> None:
    """Give a file a second name; where a file system has no such names, write it again."""
    try:
        target.unlink(missing_ok=True)
        os.link(source, target)
    except OSError:
        copyfile(source, target)


def _zip_is_sound(file: BinaryIO) -> bool:
    """Tell whether a file is a zip archive whose own checksums are right.

    Archives that are compressed, or whose parts overlap, are none that torch writes.
    """
    try:
        contents_of(file, stored=True)
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    # A damaged archive fails in zipfile, struct or in decoding names, each with its own errors.
    except Exception:
        return False
