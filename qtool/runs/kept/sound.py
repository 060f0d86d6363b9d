"""What of a run's files is what was written, and of the run as it is now: told by content.

Checkpoints have their digests beside them, an integer model holds one of itself, and the digest of
the checkpoint that it was made of. When files were touched or copied does not matter.
"""

from pathlib import Path

from qtool.errors import DamagedFileError, InputError
from qtool.files.checksums import NewestAndPrevious
from qtool.integer.format import made_of
from qtool.runs.kept.folder import RunFolder


def checkpoint_sha256(folder: RunFolder) -> str | None:
    """Return the SHA-256 of a run's checkpoint; None where there is none.

    Raises:
        DamagedFileError: If it is not what was written; names the command that goes on from the one
            before.
        InputError: If it cannot be read.
    """
    path = folder.checkpoint
    try:
        with NewestAndPrevious(path).opened(path) as (_, digest):
            return digest
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except DamagedFileError as error:
        raise DamagedFileError(f"{error}; {advice(path)}") from error


def checkpoint_to_go_on_from(folder: RunFolder) -> tuple[Path | None, str]:
    """Return the checkpoint that a run goes on from, and what to say of one that is left out.

    Returns:
        The newest that is sound, None where there is none and never was, and a note, "" where it is
        the newest.

    Raises:
        InputError: If the newest is damaged, and so is the one before, or there is none.
    """
    pair = NewestAndPrevious(folder.checkpoint)
    there = pair.newest.is_file()
    if pair.digest_if_sound(pair.newest) is not None:
        return pair.newest, ""
    if pair.digest_if_sound(pair.previous) is not None:
        why = "damaged" if there else "missing"
        return pair.previous, f"{pair.newest}: {why}; going on from {pair.previous.name}"
    _ = checkpoint_sha256(folder)
    return None, ""


def advice(checkpoint: Path) -> str:
    """Say how to go on from the checkpoint before a damaged one, or from the beginning."""
    pair, folder = NewestAndPrevious.of(checkpoint), RunFolder(checkpoint.parent)
    if pair.digest_if_sound(pair.previous) is not None:
        return f"go on from {pair.previous.name} with: {folder.resume_command}"
    return f"restore it, or delete it and train from the beginning with: {folder.resume_command}"


def integer_is_fresh(folder: RunFolder) -> bool:
    """Tell whether the usual integer model is there, whole, and of the run as it is now.

    Raises:
        InputError: If the checkpoint is damaged.
    """
    return not why_not_fresh(folder, folder.integer)


def why_not_fresh(folder: RunFolder, integer: Path) -> str:
    """Return why an integer model must be made anew, "" where it need not be.

    Args:
        folder: of the run.
        integer: the usual integer model, or that of a target that needs one of its own.

    Raises:
        InputError: If the checkpoint is damaged.
    """
    checkpoint = checkpoint_sha256(folder)
    if not integer.is_file():
        return "missing"
    try:
        source = made_of(integer)
    except InputError as error:
        return str(error).removeprefix(f"{integer}: ").removesuffix("; convert again")
    if checkpoint is None:
        return _why_unlike_usual(folder, integer, source)
    if not source:
        return f"does not say which {folder.checkpoint.name} it was made of"
    return "" if source == checkpoint else f"made of another {folder.checkpoint.name}"


def _why_unlike_usual(folder: RunFolder, integer: Path, source: str) -> str:
    """Return why a target's integer model is not of the network that the usual one is of.

    Nothing was trained in the folder, so that the usual one is all there is to go by.
    """
    if integer == folder.integer or not folder.integer.is_file():
        return ""
    usual = made_of(folder.integer)
    return "" if usual in ("", source) else f"made of another network than {folder.integer.name}"
