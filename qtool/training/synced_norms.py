"""Batch norms whose statistics are those of the rows of all processes.

torch's SyncBatchNorm is for GPUs, where its kernels are taken; elsewhere the same is computed here.
A norm keeps its class as a base, its tensors and their names.
"""

from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules._functions import SyncBatchNorm as OnDevice
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from qtool.errors import InputError
from qtool.world.group import Group
from qtool.world.passes import this_pass
from qtool.world.world import World


class _Context(Protocol):
    """What the forward pass leaves to the backward pass."""

    world: World
    saved_tensors: tuple[Tensor, Tensor, Tensor, Tensor | None]
    count: float

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors."""
        ...


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, all of them of all processes.

    Backward, with sums over the rows of all, n of them, and x^ = (x - mean) / sqrt(variance + eps):

        g_x = weight / sqrt(variance + eps) * (g - sum g / n - x^ sum(g x^) / n)
    """

    @staticmethod
    def forward(  # noqa: PLR0917  torch's apply takes no keywords
        ctx: _Context,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        found: tuple[Tensor, Tensor, float],
        eps: float,
        world: World,
    ) -> Tensor:
        """Return y [B, C, ...]; `found` is mean [C], variance [C] and n."""
        mean, variance, ctx.count = found
        ctx.world = world
        ctx.save_for_backward(x, mean, torch.rsqrt(variance + eps), weight)
        return F.batch_norm(x, mean, variance, weight, bias, eps=eps)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias; those two of this process's rows alone."""
        x, mean, inverse, weight = ctx.saved_tensors
        (grad,) = grads
        axes, shape = _axes(x), [1, -1, *[1] * (x.ndim - 2)]
        normal = (x - mean.view(shape)) * inverse.view(shape)
        own = torch.stack([grad.sum(axes), (grad * normal).sum(axes)])
        of_bias, of_weight = ctx.world.add_up(own) / ctx.count
        factor = inverse if weight is None else inverse * weight
        inner = grad - of_bias.view(shape) - normal * of_weight.view(shape)
        of_x = inner * factor.view(shape)
        return of_x, None if weight is None else own[1], own[0], None, None, None


class SyncedNorm(BatchNorm):
    """What norms with the statistics of all processes share; outside of such passes, plain ones."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised input, same shape."""
        world = this_pass().world
        if not (self.training and isinstance(world, Group)):
            return super().forward(input)
        self._check_input_dim(input)
        momentum = self._count()
        mean, variance = self._buffers["running_mean"], self._buffers["running_var"]
        if input.is_cuda:
            assert world.group is not None
            made = OnDevice.apply(
                *(input, self.weight, self.bias, mean, variance),
                *(self.eps, momentum, world.group, world.size),
            )
            return cast(Tensor, made)
        with torch.no_grad():
            found = _statistics(input, world)
            if mean is not None and variance is not None:
                unbiased = found[1] * (found[2] / max(1.0, found[2] - 1))
                mean.lerp_(found[0].to(mean.dtype), momentum)
                variance.lerp_(unbiased.to(variance.dtype), momentum)
        return cast(Tensor, _Normalize.apply(input, self.weight, self.bias, found, self.eps, world))

    def _count(self) -> float:
        """Count a batch; return how much the running statistics take of it."""
        if self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked.add_(1)
        return 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum


def _statistics(x: Tensor, world: World) -> tuple[Tensor, Tensor, float]:
    """Return mean [C] and variance [C] of the rows of all processes, and of how many values."""
    count = x.numel() // x.shape[1]
    variance, mean = torch.var_mean(x.double(), _axes(x), correction=0)
    own = torch.stack([mean, variance, torch.full_like(mean, float(count))])
    means, variances, counts = world.each(own).unbind(1)  # [size, C] each
    total = counts.sum(0)
    whole = (counts * means).sum(0) / total
    spread = (counts * (variances + (means - whole).square())).sum(0) / total
    return whole.to(x.dtype), spread.to(x.dtype), float(total[0])


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


class SyncedNorm1d(SyncedNorm, nn.BatchNorm1d):
    """One over [B, C] or [B, C, L]."""


class SyncedNorm2d(SyncedNorm, nn.BatchNorm2d):
    """One over [B, C, H, W]."""


class SyncedNorm3d(SyncedNorm, nn.BatchNorm3d):
    """One over [B, C, D, H, W]."""


KINDS: dict[type[nn.Module], type[SyncedNorm]] = {
    nn.BatchNorm1d: SyncedNorm1d,
    nn.BatchNorm2d: SyncedNorm2d,
    nn.BatchNorm3d: SyncedNorm3d,
}


def sync_norms(model: nn.Module) -> None:
    """Let the batch norms of a model take the statistics of all processes, in place.

    Raises:
        InputError: If one is of a class of its own, whose forward is not known.
    """
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, BatchNorm)]
    for name, norm in norms:
        if type(norm) not in KINDS and not isinstance(norm, SyncedNorm):
            raise InputError(
                f"training.sync_batch_norm: {name} is a {type(norm).__name__}, and only "
                f"{', '.join(kind.__name__ for kind in KINDS)} are known; leave it out"
            )
    for _, norm in norms:
        norm.__class__ = KINDS.get(type(norm), norm.__class__)


def plain_norms(model: nn.Module) -> None:
    """Let batch norms be again what they were before `sync_norms`, in place."""
    plain: dict[type[nn.Module], type[nn.Module]] = {s: kind for kind, s in KINDS.items()}
    for module in model.modules():
        if (kind := plain.get(type(module))) is not None:
            module.__class__ = kind
