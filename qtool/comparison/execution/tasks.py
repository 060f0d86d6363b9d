"""What goes to another process that trains a trial, and what comes back from it."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qtool import errors
from qtool.comparison.execution.trials import Train, Trial
from qtool.errors import InputError, QtoolError
from qtool.files.checksums import sha256_of
from qtool.recipe.parts import LOADERS, used_by
from qtool.reports.results import Summary
from qtool.settings.user_code import UserCode
from qtool.settings.user_parts import Source, Use, source_of

Reply = Mapping[str, object]  # plain data: a summary, or an error and its message


@dataclass(frozen=True)
class Task:
    """A trial, what trains it, and the user's own parts that this takes.

    Attributes:
        parts: that the recipe uses, each with where it comes from.
    """

    trial: Trial
    train: Train
    parts: Sequence[tuple[Use, Source]]

    @classmethod
    def of(cls, trial: Trial, train: Train) -> "Task":
        """Return the task to train a trial.

        Raises:
            InputError: If a part has no source, so that no other process can load it.
        """
        return cls(trial, train, _parts_of(trial))

    def sent(self) -> bytes:
        """Return the task as it is sent to a process."""
        return pickle.dumps(self)

    def done(self) -> Reply:
        """Train the trial in this process, and return what the one that sent it is to hear.

        Raises:
            Stopped: If this process is asked to stop.
        """
        try:
            for use, source in self.parts:
                _load(use, source)
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


def _load(use: Use, source: Source) -> None:
    """Put a user's part into the table of its family.

    Raises:
        InputError: If its source is no longer what it was.
    """
    if source_of(use.name) is not None:  # of this very process
        return
    if source.path is not None and sha256_of(source.path) != source.digest:
        raise InputError(f"{source.path}: has changed since the comparison began; start it again")
    within = source.folder
    if source.is_file and source.path is not None:
        within = source.path.parent
    LOADERS[use.family](use.name, UserCode(() if within is None else (within,)), use.params)


def _parts_of(trial: Trial) -> list[tuple[Use, Source]]:
    """Return the user's own parts of a trial, and where they come from."""
    found: list[tuple[Use, Source]] = []
    for use in used_by(trial.recipe.as_dict()):
        source = source_of(use.name)
        if source is None:
            why = "has no source that other processes can load; leave out --jobs"
            raise InputError(f"{use.name}: {why}")
        found.append((use, source))
    return found
