"""Weights that flip between two codes: how often they do, and how to hold them still.

Reference: Nagel et al., 2022, arXiv:2203.11086.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qtool.numerics.grid import IntegerGrid, quantize
from qtool.numerics.scales import above_floor

SAMPLE = 4_096  # weights of a layer that are watched where none is ever frozen
MOMENTUM = 0.01
ATEN = torch.ops.aten


class OscillationTracker(nn.Module):
    """Watches a weight's codes from step to step.

    An oscillation is a change of the code against the direction of its last change; a weight's
    frequency is the moving average of that, f <- m o + (1 - m) f. Watched are all weights where
    some may be frozen, else an even sample of them.

    Attributes:
        codes, direction, frequency: float32 [N], of the watched weights.
        average, frozen: float32 and bool [N], the code's moving average and whether it is held;
            [0] where no weight is ever frozen.
    """

    codes: Tensor
    direction: Tensor
    frequency: Tensor
    average: Tensor
    frozen: Tensor
    watched: Tensor
    channel: Tensor
    flips: Tensor

    def __init__(self, weight: Tensor, momentum: float | None) -> None:
        """Watch a weight [C, ...]; `momentum` is None where no weight is ever frozen."""
        super().__init__()
        self.freezes = momentum is not None
        self.momentum = MOMENTUM if momentum is None else momentum
        count = weight.numel()
        self.stride = 1 if self.freezes else max(1, -(-count // SAMPLE))
        watched = torch.arange(0, count, self.stride, device=weight.device)
        self.register_buffer("watched", watched, persistent=False)
        channel = watched // max(1, count // max(1, len(weight)))
        self.register_buffer("channel", channel, persistent=False)
        for name in ("codes", "direction", "frequency"):
            self.register_buffer(name, torch.zeros(len(watched), device=weight.device))
        held = count if self.freezes else 0
        self.register_buffer("average", torch.zeros(held, device=weight.device))
        self.register_buffer("frozen", torch.zeros(held, dtype=torch.bool, device=weight.device))
        self.register_buffer("flips", torch.zeros((), device=weight.device), persistent=False)
        self.started, self.steps = False, 0

    def codes_of(self, weight: Tensor, scale: Tensor, grid: IntegerGrid) -> Tensor:
        """Return the codes of the watched elements of a weight [C, ...], [N]."""
        values, scales = self.watched_of(weight, scale)
        return quantize(values, scales, 0, grid).float()

    def watched_of(self, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the watched elements of a weight [C, ...], [N], and their scales, [N] or [1]."""
        values, scales = weight.detach(), scale.detach().reshape(-1)
        if values.ndim == 4 and not self.freezes:
            values = values.permute(0, 2, 3, 1)  # no copy where the channels are innermost
        if len(scales) > 1:
            scales = scales.index_select(0, self.channel)
        return values.reshape(-1)[:: self.stride], scales

    def freeze(self, codes: Tensor, threshold: float) -> None:
        """Take the newest codes into their average, and freeze what is above `threshold`."""
        self.average.lerp_(codes, self.momentum)
        new = (self.frequency > threshold) & ~self.frozen
        self.average.copy_(torch.where(new, self.average.round(), self.average))
        self.frozen.logical_or_(new)
        # a frozen weight's code stays as it is, so its average, once whole, does too

    def hold(self, weight: Tensor, scale: Tensor, grid: IntegerGrid) -> Tensor:
        """Return the weight with its frozen elements at their levels, which move with the scale."""
        if not self.freezes:
            return weight
        levels = (self.average.round().reshape(weight.shape) - grid.offset) * scale
        frozen = self.frozen.reshape(weight.shape).clone()  # this backward still needs it as it is
        return torch.where(frozen, levels.to(weight.dtype), weight)

    def take_metrics(self) -> dict[str, float]:
        """Return what was seen since the last call, averaged over weights and steps."""
        seen = max(1, self.steps) * max(1, len(self.watched))
        found = {
            "flip_ratio": float(self.flips) / seen,
            "oscillation_frequency": float(self.frequency.mean()) if len(self.frequency) else 0.0,
        }
        if self.freezes:
            found["frozen_share"] = float(self.frozen.float().mean())
        self.flips.zero_()
        self.steps = 0
        return found

    def counted(self) -> Tensor:
        """Return what was seen since `take_metrics`: flips and steps, float64 [2], on the CPU."""
        return torch.tensor([float(self.flips), self.steps], dtype=torch.float64)

    def count_from(self, counted: Tensor) -> None:
        """Go on from what `counted` returned."""
        flips, steps = counted.tolist()
        self.flips.fill_(flips)
        self.steps = int(steps)

    def get_extra_state(self) -> Tensor:
        """Return what a checkpoint must hold beside the buffers, float32 [1], made anew."""
        return torch.tensor([float(self.started)])

    def set_extra_state(self, state: Tensor | Mapping[str, bool]) -> None:
        """Take what `get_extra_state` returned, an average of such, or the dict of older files."""
        given = float(state[0]) if isinstance(state, Tensor) else float(state["started"])
        self.started = given > 0


def codes_of_all(
    trackers: list[OscillationTracker],
    weights: list[Tensor],
    scales: list[Tensor],
    grids: list[IntegerGrid],
) -> list[Tensor]:
    """Return what `codes_of` of each tracker does, [N] each; scales are taken above the floor.

    The samples of all weights on one grid are rounded as one tensor: they are small, and many.
    """
    found: dict[int, Tensor] = {}
    alike: dict[tuple[IntegerGrid, torch.dtype, torch.device], list[int]] = {}
    for k, (tracker, weight, grid) in enumerate(zip(trackers, weights, grids, strict=True)):
        if tracker.freezes:  # all of a weight is watched, which is not copied for this
            found[k] = tracker.codes_of(weight, above_floor(scales[k]), grid)
        else:
            alike.setdefault((grid, weight.dtype, weight.device), []).append(k)
    for (grid, *_), places in alike.items():
        watched = [trackers[k].watched_of(weights[k], scales[k]) for k in places]
        values = torch.cat([given for given, _ in watched])
        steps = torch.cat([step.expand(len(given)) for given, step in watched])
        codes = quantize(values, above_floor(steps), 0, grid).float()
        found |= zip(places, codes.split([len(given) for given, _ in watched]), strict=True)
    return [found[k] for k in range(len(trackers))]


@torch.no_grad()
def observe(trackers: list[OscillationTracker], codes: list[Tensor]) -> None:
    """Take the codes [N] that each tracker's weight has before a training step.

    All go together, as a network has many small weights and each operation has its price.
    """
    for tracker, first in zip(trackers, codes, strict=True):
        if not tracker.started:
            tracker.started = True
            tracker.codes.copy_(first)
            tracker.average.copy_(first[: len(tracker.average)])
            tracker.direction.zero_()
            tracker.steps -= 1  # there is no change to count yet
    moves = ATEN._foreach_sub.List(codes, [t.codes for t in trackers])
    ATEN._foreach_sign_.default(moves)
    directions = [t.direction for t in trackers]
    turned = ATEN._foreach_mul.List(moves, directions)
    ATEN._foreach_clamp_max_.Scalar(turned, 0)
    ATEN._foreach_neg_.default(turned)
    for momentum in {t.momentum for t in trackers}:
        alike = [k for k, t in enumerate(trackers) if t.momentum == momentum]
        frequencies = [trackers[k].frequency for k in alike]
        ATEN._foreach_lerp_.Scalar(frequencies, [turned[k] for k in alike], momentum)
    ATEN._foreach_add_.List(directions, moves, alpha=2)
    ATEN._foreach_sign_.default(directions)  # that of the last move that was one
    ATEN._foreach_copy_.default([t.codes for t in trackers], codes)
    ATEN._foreach_add_.List([t.flips for t in trackers], ATEN._foreach_norm.Scalar(moves, 1))
    for tracker in trackers:
        tracker.steps += 1
