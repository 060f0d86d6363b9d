"""The learning rate of latent weights, from how many of their codes change (TR scheduling)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qtool.numerics.schedules import Schedule
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.oscillation import OscillationTracker
from qtool.training.step_aid import StepAid
from qtool.training.watcher import Seen, Watcher


class TransitionRate(StepAid, Watcher):
    """Sets the learning rate of quantized weights so that a given share of codes change per step.

        k = codes changed by the last step / all codes
        K <- m K + (1 - m) k
        U <- max(0, U + gain (R - K)),  the rate of all quantized weights, times their factors

    with R, the target, a schedule. All else trains at the usual rate. U and K are kept in the
    groups of the optimizer, so that a checkpoint has them. Of a weight of more than 4,096 elements
    the change is that of an even sample, as in flip_ratio.

    Reference: Lee et al., 2024, arXiv:2404.19248.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        target: Schedule,
        *,
        momentum: float,
        start: float,
        gain: float,
    ) -> None:
        """Take over the rate of quantized weights.

        Args:
            model: prepared.
            optimizer: over groups in which quantized weights are apart.
            target: R by the share of training done.
            momentum: m.
            start: U before the first step.
            gain: of U, per share of the codes.
        """
        layers = [layer for layer in quant_layers(model).values() if layer.weight_quantizer]
        latent = {id(layer.weight) for layer in layers}
        self._groups = [
            group
            for group in optimizer.param_groups
            if any(id(parameter) in latent for parameter in group["params"])
        ]
        self._quantizers = [q for layer in layers if (q := layer.weight_quantizer) is not None]
        self._trackers = [quantizer.tracker for quantizer in self._quantizers]
        counts = [float(layer.weight.numel()) for layer in layers]
        self._shares = torch.tensor(counts, dtype=torch.float64) / max(1.0, sum(counts))
        self._target, self._momentum, self._gain = target, momentum, gain
        for group in self._groups:
            group.setdefault("latent_rate", start)
            group.setdefault("transition_rate", 0.0)
        self._before = torch.zeros(len(layers), dtype=torch.float64)

    def look(self) -> None:
        """Note what was counted before the last step is."""
        self._before = _flips(self._trackers)

    def begin(self) -> None:
        """Take in the changes that the last step has made."""
        changed = _flips(self._trackers) - self._before
        seen = torch.tensor([max(1, len(each.watched)) for each in self._trackers])
        k = float((changed / seen * self._shares).sum())
        progress = self._quantizers[0].progress if self._quantizers else 0.0
        wanted = self._target(progress)
        for group in self._groups:
            running = self._momentum * group["transition_rate"] + (1 - self._momentum) * k
            group["transition_rate"] = running
            group["latent_rate"] = max(0.0, group["latent_rate"] + self._gain * (wanted - running))

    def before(self) -> None:
        """Let the step be taken at this rate."""
        for group in self._groups:
            group["lr"] = group["latent_rate"] * group["rate_scale"]

    def measures(self) -> Mapping[str, Seen]:
        """Return rate and running share of changes after the epoch's last step."""
        if not self._groups:
            return {}
        last = self._groups[0]
        return {
            "latent_learning_rate": last["latent_rate"],
            "transition_rate": last["transition_rate"],
        }


def _flips(trackers: list[OscillationTracker]) -> Tensor:
    """Return how many codes each has seen change, float64 [layers], on the CPU."""
    return torch.tensor([float(tracker.flips) for tracker in trackers], dtype=torch.float64)
