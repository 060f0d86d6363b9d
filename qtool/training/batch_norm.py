"""Batch norm statistics, estimated anew once the weights no longer move."""

from collections.abc import Collection, Iterable

import torch
from torch import nn

from qtool.graph.inputs import inputs_from
from qtool.graph.swap import ATTRIBUTE, Kept
from qtool.quantizers.door.finite import refuse_bad_values
from qtool.quantizers.prepare import prepared_state


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[object], *, still: Collection[nn.Module] = ()
) -> None:
    """Set the running statistics of every batch norm to their mean over `batches`, in place.

    During training they are moving averages over steps whose weights were still flipping between
    codes. Quantizers and everything else stay as they are, in evaluation mode.

    Args:
        model: any model but an integer one; it is left in evaluation mode.
        batches: as `calibrate` takes them.
        still: norms that keep their statistics.

    Raises:
        ValueError: If it is an integer model, there is no batch, or the first one has another
            form than the example; then nothing has changed. Statistics stay as they were, too,
            where a pass fails, and where a batch holds values that are not finite (a ModelError).

    Reference: Nagel et al., 2022, arXiv:2203.11086.
    """
    form = None
    if isinstance(getattr(model, ATTRIBUTE, None), Kept):  # it came from qtool, but is it prepared?
        form = prepared_state(model).form_of_inputs
    inputs = inputs_from(batches, form, model, "reestimate_batch_norm")
    model.eval()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats and norm not in still]
    if not norms:
        return
    kept = [(norm, norm.momentum, [b.clone() for b in norm.buffers()]) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average of all batches
        norm.train()
    try:
        for count, batch in enumerate(inputs, 1):
            refuse_bad_values(batch.tensors, f"batch {count}")
            batch.call(model)
    except BaseException:
        for norm, _, statistics in kept:
            for buffer, value in zip(norm.buffers(), statistics, strict=True):
                buffer.copy_(value)
        raise
    finally:
        for norm, momentum, _ in kept:
            norm.momentum = momentum
            norm.eval()
