"""The folder that data sets are looked up in, and what may be read there for another's recipe."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qtool.errors import DataError


@dataclass(frozen=True)
class DataRoot:
    """A folder of data sets.

    Attributes:
        path: of the folder.
        confined: the recipe is someone else's. Nothing outside is read, wherever links lead, and
            nothing is downloaded or made.
        chosen: the user said that the folder is the one, so that a recipe may name files in it.
    """

    path: Path
    confined: bool = False
    chosen: bool = True

    @classmethod
    def of(cls, root: "Path | DataRoot") -> "DataRoot":
        """Return the folder of one's own data sets, or one of which more is known."""
        return root if isinstance(root, DataRoot) else cls(root)

    def named(self, relative: str) -> Path:
        """Return the path that a recipe names in the folder.

        Raises:
            DataError: If it may not be read.
        """
        if not self.chosen:
            raise DataError(
                f"{relative}: named by a recipe that is not yours, so it is not looked for; "
                "--data-root FOLDER says where its data are"
            )
        return self.inside(self.path / relative)

    def inside(self, path: Path) -> Path:
        """Return a path that may be read.

        Raises:
            DataError: If it may not, for it leads out of the folder.
        """
        if self.confined:
            try:
                within = path.resolve().is_relative_to(self.path.resolve())
            except (OSError, RuntimeError):  # links that go round in circles
                within = False
            if not within:
                raise DataError(
                    f"{path}: leads out of {self.path}, and for a recipe that is not yours nothing "
                    "else is read; --data-root FOLDER says where its data are"
                )
        return path

    def all_inside(self, files: Iterable[Path]) -> list[Path]:
        """Return files that may be read, each folder of them looked at once.

        Raises:
            DataError: If one may not.
        """
        found = list(files)
        if self.confined:
            for path in {*(p.parent for p in found), *(p for p in found if p.is_symlink())}:
                self.inside(path)
        return found
