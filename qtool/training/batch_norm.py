"""Batch norm statistics, estimated anew once the weights no longer move."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def reestimate_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running statistics of every batch norm to their mean over `batches`, in place.

    During training they are moving averages over steps whose weights were still flipping between
    codes. Quantizers and everything else stay as they are, in evaluation mode.

    Args:
        model: any model; it is left in evaluation mode.
        batches: inputs [B, ...] on the model's device.

    Reference: Nagel et al., 2022, arXiv:2203.11086.
    """
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of all batches
        norm.train()
    try:
        for images in batches:
            model(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
