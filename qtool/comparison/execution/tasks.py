"""What goes to another process that trains a trial, and what comes back from it."""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qtool import errors
from qtool.comparison.execution.trials import Train, Trial
from qtool.errors import InputError, QtoolError
from qtool.files.checksums import sha256_of
from qtool.numerics.estimators import ESTIMATORS
from qtool.reports.results import Summary
from qtool.settings.user_estimators import load_estimator, source_of, used_by

Reply = Mapping[str, object]  # plain data: a summary, or an error and its message


@dataclass(frozen=True)
class Task:
    """A trial, what trains it, and the user's own estimators that this takes.

    Attributes:
        estimators: name -> where its file lies, and the SHA-256 that it had when it was read.
    """

    trial: Trial
    train: Train
    estimators: Mapping[str, tuple[Path, str]]

    @classmethod
    def of(cls, trial: Trial, train: Train) -> "Task":
        """Return the task to train a trial.

        Raises:
            InputError: If an estimator has no file, so that no other process can load it.
        """
        return cls(trial, train, _estimators_of(trial))

    def sent(self) -> bytes:
        """Return the task as it is sent to a process."""
        return pickle.dumps(self)

    def done(self) -> Reply:
        """Train the trial in this process, and return what the one that sent it is to hear.

        Raises:
            Stopped: If this process is asked to stop.
        """
        try:
            for name, (path, digest) in self.estimators.items():
                _load(name, path, digest)
            return {"summary": self.train(self.trial).to_json()}
        except QtoolError as error:
            return {"error": type(error).__name__, "message": str(error)}


@dataclass(frozen=True)
class Ended:
    """How a process ended: with a summary, an error that it told of, or without a word.

    Attributes:
        why: it died, in words; "" where it did not.
    """

    summary: Summary | None = None
    error: QtoolError | None = None
    why: str = ""

    @classmethod
    def of(cls, reply: Reply) -> "Ended":
        """Return what a reply says; an error is of the class that it had there."""
        if "summary" in reply:
            return cls(summary=Summary.of(reply["summary"], Path("a trial's process")))
        kind = vars(errors).get(str(reply["error"]), QtoolError)
        return cls(error=kind(str(reply["message"])))


def _load(name: str, path: Path, digest: str) -> None:
    """Put a user's estimator into ESTIMATORS.

    Raises:
        InputError: If its file is no longer what it was.
    """
    if name in ESTIMATORS:
        return
    if sha256_of(path) != digest:
        raise InputError(f"{path}: has changed since the comparison began; start it again")
    load_estimator(name, path.parent)


def _estimators_of(trial: Trial) -> dict[str, tuple[Path, str]]:
    """Return where the user's own estimators of a trial lie, and their SHA-256."""
    found: dict[str, tuple[Path, str]] = {}
    for _, name, _ in used_by(trial.recipe.as_dict()["quantization"]):
        path = source_of(name)
        if path is None:
            raise InputError(f"{name}: has no file that other processes can load; leave out --jobs")
        found[name] = path, sha256_of(path)
    return found
