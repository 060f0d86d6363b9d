"""Set the scales of activations from data, before training or instead of it."""

from collections.abc import Iterable

from torch import nn

from qtool.graph.recorder import without_traces
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.layers import quant_layers


def calibrate(model: nn.Module, batches: Iterable[object]) -> None:
    """Set observed and learned activation scales from `batches`, and weight scales anew.

    Inputs stay float while the batches run, in the mode (training or evaluation) that the model
    is in; batch norm statistics and random number generators are left as they were.

    Args:
        model: a model from `prepare`.
        batches: input batches [B, ...] on the model's device, alone or first in a tuple or list,
            as loaders give them; some hundred images are enough.

    Raises:
        ValueError: If there is no batch.
    """
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    observers = [quantizer.observer for quantizer in quantizers]
    seen = 0
    for observer in observers:
        observer.watching = True
        observer.forget()
    try:
        with without_traces(model):
            for batch in batches:
                model(batch[0] if isinstance(batch, tuple | list) else batch)
                seen += 1
    except BaseException:
        for observer in observers:
            observer.forget()
        raise
    finally:
        for observer in observers:
            observer.watching = False
    if not seen:
        raise ValueError("calibrate needs at least one batch")
    for quantizer in quantizers:
        if quantizer.observer.watched:
            quantizer.settle()
    for layer in quant_layers(model).values():
        layer.fit_weight()
