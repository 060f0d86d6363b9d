"""How a network does on images that it is not trained on: those held out, and the validation set.

Blended tensors are quantized in full, as they will be deployed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from qtool.evaluation import Score, evaluate
from qtool.quantizers.control import blend_alphas, without_blends
from qtool.training.failures import failed_step, loss_of
from qtool.training.losses import Loss
from qtool.training.lost import Lost
from qtool.training.step_watch import LossError, StepWatch, loss_problem
from qtool.training.tally import Measures
from qtool.training.watcher import Batches, Watcher
from qtool.world.world import World


@dataclass(frozen=True)
class Judge:
    """Judges a network in evaluation mode.

    Attributes:
        model: that is judged, as it is then.
        validation, holdout: by which images; None where none are held out.
        loss: whose mean is told.
        watchers: see logits and labels.
        watch: knows the loss that training began with.
        lost: sees the logits of validation images.
        world: processes that judge together.
        steps: of an epoch.
        top5: tell the share of validation images whose class is among the five largest logits, too.
    """

    model: nn.Module
    validation: Batches
    holdout: Batches | None
    loss: Loss
    watchers: Sequence[Watcher]
    watch: StepWatch
    lost: Lost
    world: World
    steps: int
    top5: bool = False

    def after(self, epoch: int, trained: Measures, *, last: bool) -> Measures:
        """Judge by what is held out, if anything is, and by the validation set.

        Where something is, the validation set judges the last epoch only.

        Args:
            epoch: whose steps are taken.
            trained: its line so far, perhaps with what the images held out say.
            last: no other comes.
        """
        self.model.eval()
        if self.holdout is None:
            return self.validate(epoch)
        held: Measures = {}
        if "holdout_loss" not in trained:
            held = self.hold_out(epoch, watched=not last)
        line: Measures = {"validation_loss": None, "validation_accuracy": None}
        if last:
            line = self.validate(epoch)
        return line | held

    def hold_out(self, epoch: int, *, watched: bool) -> Measures:
        """Judge by the images held out; tell watchers what they see where `watched`."""
        assert self.holdout is not None
        with without_blends(self.model):
            held = self._score(self.holdout, epoch, self._watched_loss if watched else self.loss)
        line: Measures = {"holdout_loss": held.loss, "holdout_accuracy": held.accuracy}
        return line if held.f1 is None else line | {"holdout_f1": held.f1}

    def validate(self, epoch: int) -> Measures:
        """Judge the quantized network and, where there are blends, the blended one beside it."""
        alphas = blend_alphas(self.model).values()
        with without_blends(self.model):
            self.lost.begin_validation()
            score = self._score(self.validation, epoch, self._watched_loss, top5=self.top5)
        line: Measures = {"validation_loss": score.loss, "validation_accuracy": score.accuracy}
        if alphas:
            # once every alpha is 1 the two are the same network
            alike = min(alphas) == 1
            blended = score if alike else self._score(self.validation, epoch, self.loss)
            line["blended_validation_loss"] = blended.loss
            line["blended_validation_accuracy"] = blended.accuracy
        if self.top5:
            line["validation_top5"] = score.top5
        if score.f1 is not None:
            line["validation_f1"] = score.f1
        return line

    def _score(self, judges: Batches, epoch: int, loss: Loss, *, top5: bool = False) -> Score:
        score = evaluate(self.model, judges.batches(epoch), loss, self.world, top5=top5)
        if error := loss_problem(score.loss, self.watch.start):
            batch = next(iter(judges.batches(epoch)))
            where = "validation" if judges is self.validation else "the hold-out"
            error = LossError(f"in {where} {error.what}", error.beside)
            when = f"in epoch {epoch + 1}, step {self.steps}"
            raise self.world.alike(failed_step(self.model, batch, error, when, self.world))
        return score

    def _watched_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        for watcher in self.watchers:
            watcher.validated(logits, labels)
        self.lost.see_logits(logits, labels)
        return loss_of(self.loss, logits, labels)
