"""What a recipe may reach: where its data are, and whether its own code runs.

Recipes come from the user, in run folders, and inside files that anyone may have made. `Access` is
what the user says on the command line, and what follows from whose recipe it is; it goes down from
the story to whoever reads data or code.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from qtool.data.datasets import default_root
from qtool.data.root import DataRoot
from qtool.errors import RecipeError
from qtool.files.json_data import read_json
from qtool.recipe.file import check_recipe, code_beside, read_extended, with_found_paths
from qtool.recipe.places import put, section_at
from qtool.recipe.plain import override, read_recipe_file
from qtool.recipe.recipe import Recipe
from qtool.runs.kept.folder import RECIPE, RunFolder
from qtool.runs.machine import host_name
from qtool.settings.section import check
from qtool.settings.user_code import UserCode

Whose = Literal["own", "another_machine", "file"]
PIXELS_AT_ONCE = 2**24  # of a batch, for a recipe out of a file: 200 MB in float32
WORKERS = 2


@dataclass(frozen=True)
class Access:
    """What the user says of a recipe, and what it may reach.

    Attributes:
        data_root: folder of the data sets, as `--data-root` has it.
        assignments: changes, as `--set` writes them.
        run_code: the copies of users' files that a run folder keeps may run.
        whose: the user's own recipe, or that of a run trained on this machine; of a run trained on
            another machine, or nobody says where; of a file alone.
    """

    data_root: Path | None = None
    assignments: Sequence[str] = ()
    run_code: bool = False
    whose: Whose = "own"

    @classmethod
    def of(
        cls,
        data_root: Path | None = None,
        assignments: Sequence[str] | None = None,
        *,
        run_code: bool = False,
    ) -> "Access":
        """Return what the options of a command say."""
        return cls(data_root, tuple(assignments or ()), run_code)

    def to(self, source: Path) -> "Access":
        """Return what holds for the recipe that a run folder or a file was made by.

        Raises:
            RecipeError: If `--set` says anything but data.
        """
        for assignment in self.assignments:
            if not assignment.strip().startswith("data."):
                raise RecipeError(
                    f"--set {assignment}: {source} stays as it was made; only its data can be "
                    "given, such as data.root=FOLDER"
                )
        return self._to_run(RunFolder(source)) if source.is_dir() else replace(self, whose="file")

    def to_recipe(self, path: Path) -> "Access":
        """Return what holds for a recipe file: that of its run folder, if it lies in one."""
        folder = _run_of(path)
        return self if folder is None else self._to_run(folder)

    def _to_run(self, folder: RunFolder) -> "Access":
        return self if trained_here(folder) else replace(self, whose="another_machine")

    def code_of(self, path: Path, into: RunFolder | None = None) -> UserCode:
        """Return where the own files of a recipe file are looked for, and which may run.

        Args:
            path: of the recipe.
            into: folder of the run that goes on with it.
        """
        folder = _run_of(path)
        if folder is not None:
            return folder.code(run_copies=self.run_code)
        beside = code_beside(path)
        if into is None or not _goes_on(into):
            return beside
        return replace(beside, digests=into.kept_digests(), into=into.path)

    def code_of_file(self, path: Path, said: object) -> UserCode:
        """Return where the own code of a recipe inside a file is looked for, and which may run.

        Args:
            path: of the file, which may lie in the folder of its run.
            said: file or module -> SHA-256, as the file has it.
        """
        digests = {str(k): str(v) for k, v in said.items()} if isinstance(said, dict) else {}
        within = RunFolder(path.parent).holds_run()
        code = UserCode.of_run(path.parent if within else path, digests, run_copies=self.run_code)
        beside = (path.parent,) if self.run_code and not within else ()
        return replace(code, folders=(*code.folders, *beside))

    def read(self, path: Path, code: UserCode) -> tuple[dict[str, object], Recipe]:
        """Return a recipe file as plain data and checked, with all that the user says of it.

        Raises:
            RecipeError: If the file cannot be read. Lists every problem with its dotted place.
        """
        if _run_of(path) is None:
            data = read_extended(path)
        else:  # a run's recipe, which may be anyone's, is whole
            data = with_found_paths(read_recipe_file(path), path.parent)
        if self.whose != "own":
            data = put(data, {"data.root": None}) if section_at(data, "data") else data
        data = override(data, self.assignments)
        if self.data_root is not None and section_at(data, "data"):
            data = put(data, {"data.root": str(self.data_root.absolute())})
        return data, check_recipe(data, path, code=code)

    def taken(self, recipe: Recipe) -> "Access":
        """Return what still holds once a recipe says what the user said of it."""
        root = recipe.data.root
        return replace(self, assignments=(), data_root=None if root is None else Path(root))

    def applied(self, recipe: Recipe, source: str) -> Recipe:
        """Return a recipe as its data are read: of a run or a file, whose recipe stays as it is.

        Raises:
            RecipeError: If what `--set` says is wrong.
        """
        said = recipe.as_dict()
        data = section_at(said, "data")
        if self.whose != "own":
            data.pop("root", None)
        if self.whose == "file":
            data = _harmless(data)
        if self.whose != "own" or self.assignments:
            made = override(said | {"data": data}, self.assignments)
            recipe = check(Recipe, made, f"{source}, its recipe")
        return recipe

    def root(self, recipe: Recipe) -> DataRoot:
        """Return the folder of the data sets of a recipe that `applied` returned."""
        given = recipe.data.root if self.data_root is None else str(self.data_root)
        path = default_root() if given is None else Path(given).expanduser()
        own = self.whose == "own"
        return DataRoot(path, confined=not own, chosen=own or given is not None)


OWN = Access()
OF_A_FILE = Access(whose="file")


def trained_here(folder: RunFolder) -> bool:
    """Tell whether a run folder says that its run was made on this machine."""
    said = read_json(folder.environment) if folder.environment.is_file() else {}
    return said.get("host") == host_name()


def _run_of(path: Path) -> RunFolder | None:
    """Return the run folder that a recipe file is the resolved recipe of, if there is one."""
    with suppress(OSError, RuntimeError):  # no name of a file, or links in a circle
        resolved = path.resolve()
        same = path.parent.resolve() == resolved.parent
        folder = RunFolder(path.parent if same else resolved.parent)
        files = (folder.environment, folder.checkpoint, folder.summary, folder.integer)
        if resolved.name == RECIPE and any(file.exists() for file in files):
            return folder
    return None


def _goes_on(folder: RunFolder) -> bool:
    with suppress(OSError):  # no name of a folder
        return folder.checkpoint.is_file()
    return False


def _harmless(data: dict[str, object]) -> dict[str, object]:
    """Return a section on data with what judging takes of it, and no more memory or processes."""
    made = {key: v for key, v in data.items() if key not in ("repeats", "train_samples", "augment")}
    size, batch, workers = (data.get(key) for key in ("image_size", "batch_size", "workers"))
    if isinstance(size, int) and isinstance(batch, int):
        made["batch_size"] = min(batch, max(1, PIXELS_AT_ONCE // size**2))
    if isinstance(workers, int):
        made["workers"] = min(workers, WORKERS)
    return made
