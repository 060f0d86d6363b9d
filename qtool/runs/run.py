"""A run and what it holds: recipe, data, network, model; each built once, when it is asked for."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from qtool.console import say, warn
from qtool.data.loaders import Loaders
from qtool.errors import InputError
from qtool.files.reading import intact
from qtool.graph.exact import load_model
from qtool.models.vision import rebuild_model
from qtool.quantizers.control import set_progress
from qtool.recipe.file import load_recipe
from qtool.recipe.recipe import Recipe
from qtool.runs.access import OWN, Access
from qtool.runs.built import build
from qtool.runs.built.equipment import make_trainer
from qtool.runs.kept import checkpoint
from qtool.runs.kept.best import refuse_unless_best, why_no_best
from qtool.runs.kept.checkpoint import Checkpoint
from qtool.runs.kept.folder import RunFolder, Story
from qtool.runs.kept.sound import checkpoint_to_go_on_from
from qtool.settings.user_code import TO_JUDGE, UserCode
from qtool.training.loop import Trainer
from qtool.training.patience import Patience, merits
from qtool.training.position import go_to
from qtool.world.world import ALONE, World

CPU = torch.device("cpu")
NOT_OF_THIS_RUN = "damaged, or of another run"


@dataclass(frozen=True)
class Run:
    """What a folder's recipe and checkpoint make, on a device, with what they may reach.

    Attributes:
        world: processes that train it together.
        best: it is the network of best.pt, and not of the last epoch.
        story: command of qtool's that trains it.
    """

    folder: RunFolder
    recipe: Recipe
    device: torch.device
    access: Access = OWN
    world: World = ALONE
    best: bool = False
    story: Story = "train"

    @classmethod
    def open(
        cls, path: Path, device: torch.device, access: Access = OWN, *, code: UserCode | None = None
    ) -> "Run":
        """Return the run in a folder.

        Args:
            path: of the folder.
            device: to compute on.
            access: what the user says of the run.
            code: which of the user's own code runs; None: what there is to judge the network by.

        Raises:
            InputError: If the folder holds no run, or its recipe cannot be read.
        """
        folder = RunFolder(path)
        folder.refuse_unless_run()
        allowed = code or folder.code(run_copies=access.run_code).only(*TO_JUDGE)
        recipe = load_recipe(folder.recipe, code=allowed, extends=False)
        return cls(folder, recipe, device, access.to(path))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Where the run stands.

        Raises:
            InputError: If there is no checkpoint, or it cannot be read.
        """
        if self.best:
            if not self.folder.best.is_file():
                raise InputError(why_no_best(self.folder, self.recipe.data.holdout))
            state = self._loaded(self.folder.best)
            refuse_unless_best(state, self.folder)
            return state
        return self._loaded(self.folder.checkpoint)

    def takes_up_checkpoint(self) -> bool:
        """Load the newest checkpoint that is sound, or tell that there is none to go on from.

        Where the newest is damaged that is the one before, which is said.

        Raises:
            InputError: If both are damaged, or of another run.
        """
        state = self.world.from_first(self._newest)
        if state is not None:
            vars(self)["checkpoint"] = state
        return state is not None

    def _newest(self) -> Checkpoint | None:
        """Return the newest checkpoint that is sound, None where there is none yet."""
        path, note = checkpoint_to_go_on_from(self.folder)
        if note:
            warn(note)
        return None if path is None else self._loaded(path)

    def _loaded(self, path: Path) -> Checkpoint:
        """Return a checkpoint whose history is that of the recipe and of metrics.jsonl.

        Raises:
            InputError: If it is missing, damaged or of another run.
        """
        # other processes, which are sent it, have devices of their own
        state = checkpoint.load(path, self.device if self.world.size == 1 else CPU)
        done, epochs = len(state.history), self.recipe.training.epochs
        if done > epochs:
            raise InputError(
                f"{path}: {NOT_OF_THIS_RUN}: it has {done} epochs, and the recipe {epochs}"
            )
        if self.folder.metrics.is_file():  # without it nothing is lost: it is written again
            said = self.folder.history()
            for number, line in enumerate(state.history):
                if number >= len(said) or said[number].to_json() != line.to_json():
                    raise InputError(
                        f"{path}: {NOT_OF_THIS_RUN}: epoch {number + 1} is another one in "
                        f"{self.folder.metrics}; restore that, or delete it to go by the checkpoint"
                    )
        return state

    @cached_property
    def data(self) -> Loaders:
        """The recipe's batches.

        Raises:
            DataError: If the data set is missing or malformed.
        """
        return build.make_data(self.recipe, self.device, self.access, source=str(self.folder))

    @cached_property
    def network(self) -> nn.Module:
        """The float network that the checkpoint is of, with other weights.

        Raises:
            InputError: If the checkpoint is of another run.
        """
        with intact(self._file, NOT_OF_THIS_RUN):
            return rebuild_model(self.recipe.model.name, self.checkpoint.architecture)

    @cached_property
    def model(self) -> nn.Module:
        """The trained network, fake-quantized, as it is judged.

        Raises:
            InputError: If the checkpoint is of another run.
        """
        state, epochs = self.checkpoint, self.recipe.training.epochs
        network = self.network  # of an architecture that is whole
        build.refuse_other_data(self.data, state.architecture, str(self.folder))
        model = build.prepare_network(self.recipe, network, self.data.first_images, search=False)
        with intact(self._file, NOT_OF_THIS_RUN):
            load_model(model, state.judged)
        done = len(state.history) + self._begun
        if self.best or self._stopped_early:
            which = "the best of" if self.best else "stopped early, after epoch"
            say(f"{self._file}: {which} {done:g} of {epochs} epochs")
        elif done < epochs:
            say(f"{self.folder}: trained for {round(done, 2):g} of {epochs} epochs so far")
        set_progress(model, self.progress)
        return model.eval()

    @property
    def _file(self) -> Path:
        """Where its network is kept."""
        return self.folder.best if self.best else self.folder.checkpoint

    @property
    def _stopped_early(self) -> bool:
        """Tell whether the checkpoint is of a run that ended before all epochs were done."""
        stop = self.recipe.training.early_stopping
        if stop is None:
            return False
        patience = Patience(stop.patience, stop.min_delta)
        return patience.is_over(merits(self.checkpoint.history))

    @property
    def _begun(self) -> float:
        """Return how much of an epoch lies behind the checkpoint beside its whole ones, 0..1."""
        inside = self.checkpoint.inside
        return 0.0 if inside is None else inside["tally"]["steps"] / len(self.data.train)

    @property
    def progress(self) -> float:
        """Return the share of training that lies behind the checkpoint, 0..1."""
        done = len(self.checkpoint.history) + self._begun
        return done / self.recipe.training.epochs

    def trainer(self, recipe: Recipe | None = None) -> Trainer:
        """Return what trains the checkpoint's network as a recipe has it, at its very beginning."""
        chosen = recipe or self.recipe
        model = build.prepare_network(chosen, self.network, self.data.first_images, search=False)
        return make_trainer(chosen, model, self.data, self.device, self.world)

    def restore(self, trainer: Trainer) -> None:
        """Put a trainer where the checkpoint stands, random numbers included.

        Raises:
            InputError: If the checkpoint is of another run.
        """
        with intact(self.folder.checkpoint, NOT_OF_THIS_RUN):
            self.checkpoint.restore(trainer.model, trainer.optimizer)
            if trainer.average is not None:
                trainer.average.restore(self.checkpoint.average)
            if self.checkpoint.inside is not None:
                go_to(trainer, self.checkpoint.inside)
        trainer.history = self.checkpoint.history

    def let_go(self) -> None:
        """Forget checkpoint and network, which take the device's memory while a trainer trains."""
        for part in ("checkpoint", "network"):
            vars(self).pop(part, None)
