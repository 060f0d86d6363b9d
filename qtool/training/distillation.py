"""Distillation: a network is trained to do what a teacher does with the same images, too.

    loss = (1 - share) * the recipe's loss + share * what the teacher says

The teacher is a float network in evaluation mode. It takes the very images that the student takes,
augmented and mixed, has no gradient, and is no part of the model or its checkpoint.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.errors import TrainingError
from qtool.training.features import Outputs
from qtool.training.watcher import Watcher, WatcherState
from qtool.world.world import World

TEMPERATURE = 4.0  # unless a recipe says another
Around = Callable[[torch.device], AbstractContextManager[object]]


def softened_divergence(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return how far softened outputs are from the teacher's, the mean over images, [].

        L = T^2 * sum_c p_c (log p_c - log q_c),  p = softmax(taught / T), q = softmax(logits / T)

    T^2 lets its gradient stay as large as that of labels, whatever the temperature is.

    Args:
        logits: of the student, [B, classes].
        taught: of the teacher, [B, classes].
        temperature: T.

    Reference: Hinton et al., 2015, arXiv:1503.02531.
    """
    own = F.log_softmax(logits / temperature, 1)
    wanted = F.log_softmax(taught / temperature, 1)
    return F.kl_div(own, wanted, log_target=True, reduction="batchmean") * temperature**2


def feature_distance(own: Sequence[Tensor], taught: Sequence[Tensor]) -> Tensor:
    """Return how far the outputs of blocks are from the teacher's, mean over blocks and images, [].

        L = || f / ||f|| - g / ||g|| ||^2 = 2 - 2 cos(f, g)

    which is the mean squared error of outputs whose mean square is 1.

    Args:
        own: f, of each of the student's blocks, [B, ...].
        taught: g, of the teacher's, of the same shapes.

    Reference: Romero et al., 2014, arXiv:1412.6550, for what a block returns as a hint; normalised
    for each image as Zagoruyko and Komodakis, 2016, arXiv:1612.03928, normalise attention maps.
    """
    each = [
        (F.normalize(f.flatten(1).float(), dim=1) - F.normalize(g.flatten(1).float(), dim=1))
        .square()
        .sum(1)
        .mean()
        for f, g in zip(own, taught, strict=True)
    ]
    return torch.stack(each).mean()


class Distillation(Watcher):
    """What a teacher adds to the loss of each pass, and what that comes to over an epoch.

    Attributes:
        teacher: on the device that is trained on.
        share: of what it says in the loss.
        temperature: of softened outputs; None compares the outputs of blocks.
        blocks: names of those.
        digest: SHA-256 of its weights.
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        share: float,
        temperature: float | None = None,
        blocks: Sequence[str] = (),
        digest: str = "",
    ) -> None:
        """Take a teacher as it is; it is put into evaluation mode, and its weights stay."""
        self.teacher = teacher.eval().requires_grad_(requires_grad=False)
        self.share, self.temperature, self.digest = share, temperature, digest
        self.blocks = list(blocks)
        self._own, self._taught = Outputs(self.blocks), Outputs(self.blocks)
        device = next((p.device for p in teacher.parameters()), torch.device("cpu"))
        self._pass = torch.zeros(2, device=device)  # of this process, since the last step
        self._sums = torch.zeros(2, device=device)
        self._images = 0

    def watching(self, model: nn.Module) -> AbstractContextManager[None]:
        """Return what surrounds a pass of the student whose blocks are to be compared."""
        return self._own.watching(model) if self.blocks else nullcontext()

    def mixed(
        self, loss: Tensor, logits: Tensor, images: Tensor, around: Around, *, counts: bool = True
    ) -> Tensor:
        """Return the loss of a pass with the teacher's share in it, [].

        Args:
            loss: the recipe's, [].
            logits: the student's, float32 [B, classes].
            images: that it took, [B, C, H, W].
            around: the arithmetic that networks run in.
            counts: the pass is one of those that `measures` tells of.

        Raises:
            TrainingError: If a block did not run.
        """
        with torch.no_grad(), around(images.device), self._taught.watching(self.teacher):
            taught = self.teacher(images).float()
        if self.temperature is not None:
            says = softened_divergence(logits, taught, self.temperature)
        else:
            pairs = [self._outputs_of(name) for name in self.blocks]
            says = feature_distance([own for own, _ in pairs], [other for _, other in pairs])
            self._own.seen = self._taught.seen = {}
        if counts:
            self._pass += torch.stack([loss.detach(), says.detach()]) * len(images)
        return (1 - self.share) * loss + self.share * says

    def _outputs_of(self, name: str) -> tuple[Tensor, Tensor]:
        own, taught = (outputs.seen.get(name) for outputs in (self._own, self._taught))
        if own is None or taught is None:
            who = "the network's" if own is None else "the teacher's"
            raise TrainingError(
                f"training.distillation: {name}, {who}, did not run in this pass; choose loss: kl"
            )
        return own, taught

    def end_step(self, world: World, images: int) -> None:
        """Count what all passes of a step came to, on so many images of all processes."""
        self._sums += world.add_up(self._pass)
        self._images += images
        self._pass = torch.zeros_like(self._pass)

    def measures(self) -> dict[str, float]:
        """Return both parts of the training loss, the mean over the images since the last call."""
        label, says = (self._sums / max(1, self._images)).tolist()
        self._sums, self._images = torch.zeros_like(self._sums), 0
        return {"label_loss": label, "distillation_loss": says}

    def state(self) -> WatcherState:
        """Return the sums of the epoch so far."""
        return {"sums": self._sums, "images": torch.tensor(self._images)}

    def restore(self, state: WatcherState) -> None:
        """Take them back."""
        self._sums.copy_(state["sums"])
        self._images = int(state["images"])
