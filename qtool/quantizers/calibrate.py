"""Set the scales of activations from data, before training or instead of it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from qtool.graph.inputs import Inputs, inputs_from
from qtool.graph.recorder import without_traces
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.door.finite import refuse_bad_values
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.prepare import prepared_state


def calibrate(model: nn.Module, batches: Iterable[object]) -> None:
    """Set observed and learned activation scales from `batches`, and weight scales anew.

    Inputs stay float while the batches run, in the mode (training or evaluation) that the model
    is in; batch norm statistics and random number generators are left as they were.

    Args:
        model: a model from `prepare`.
        batches: as loaders give them, on any device; what is taken from each is fixed by the
            example that `prepare` was given (see qtool.graph.inputs), else each is a tensor
            [B, ...] or a tuple that begins with it. Some hundred images are enough.

    Raises:
        ValueError: If there is no batch, one has another form, or values are not finite. Whatever
            fails, scales stay as they were.
    """
    state = prepared_state(model)
    inputs = inputs_from(batches, state.form_of_inputs, model, "calibrate")
    quantizers = [m for m in model.modules() if isinstance(m, ActivationQuantizer)]
    with _unless_it_fails(model):
        _watch(model, quantizers, inputs)
        for quantizer in quantizers:
            if quantizer.observer.watched:
                quantizer.settle()
        for layer in quant_layers(model).values():
            layer.fit_weight()


def _watch(
    model: nn.Module, quantizers: list[ActivationQuantizer], inputs: Iterable[Inputs]
) -> None:
    """Let the observers of a model see the values that it makes of some inputs."""
    observers = [quantizer.observer for quantizer in quantizers]
    for observer in observers:
        observer.watching = True
        observer.forget()
    try:
        with without_traces(model):
            for seen, batch in enumerate(inputs, 1):
                refuse_bad_values(batch.tensors, f"batch {seen}")
                batch.call(model)
    except BaseException:
        for observer in observers:
            observer.forget()
        raise
    finally:
        for observer in observers:
            observer.watching = False


@contextmanager
def _unless_it_fails(model: nn.Module) -> Iterator[None]:
    """Change quantizers inside, and put them back as they were where that fails."""
    kept = [
        (module, module.ready, module.grid, [(t, t.detach().clone()) for t in _tensors_of(module)])
        for module in model.modules()
        if isinstance(module, FakeQuantize)
    ]
    try:
        yield
    except BaseException:
        for module, ready, grid, tensors in kept:
            module.ready, module.grid = ready, grid
            for tensor, value in tensors:
                tensor.detach().copy_(value)
        raise


def _tensors_of(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]
