"""The proof that a fake-quantized model and its integer model say the same."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from qtool.errors import ConversionError
from qtool.graph.inputs import Inputs
from qtool.integer.layers import IntegerLayer, integer_layers

TOLERANCE = 1e-4  # of a layer's largest output: float32 sums of some thousand products


def prove(reference: nn.Module, integer: nn.Module, batches: Iterable[Inputs]) -> None:
    """Check codes, and each layer's output on the inputs it really gets.

    Layers are compared one by one on the same input: through a whole network a difference in the
    last bit can move a value across a rounding threshold, which says nothing about the layer.
    """
    layers = integer_layers(integer)
    for name, layer in layers.items():
        grid = layer.spec.weight
        zeroed = layer.spec.rewritten and grid is not None and grid.kind == "mid_rise"
        if grid is not None and not zeroed and not grid.contains(layer.codes):
            raise ConversionError(f"{name}: a code lies outside its grid {grid}")
    given: dict[str, Tensor] = {}

    def run_integer(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            given[name] = layers[name](args[0])

        return hook

    def compare(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            _check_agreement(layers[name], expected=output, given=given.pop(name))

        return hook

    handles = []
    for name, layer in layers.items():
        last = reference.get_submodule(layer.spec.batch_norm or name)
        handles.append(reference.get_submodule(name).register_forward_hook(run_integer(name)))
        handles.append(last.register_forward_hook(compare(name)))
    try:
        for batch in batches:
            batch.call(reference)
    finally:
        for handle in handles:
            handle.remove()


def _check_agreement(layer: IntegerLayer, *, expected: Tensor, given: Tensor) -> None:
    """Raise ConversionError where two outputs differ by more than arithmetic explains."""
    largest = float(expected.abs().max())
    difference = (given - expected).abs()
    room = torch.full_like(difference[0], TOLERANCE * largest + 1e-12)
    if layer.spec.bias == "int32":
        # an int32 bias is off by at most half of its own step
        room = room + layer.channelwise(layer.bias_scale) / 2
    if not bool((difference <= room).all()):
        raise ConversionError(
            f"{layer.spec.name}: the integer layer's output differs by "
            f"{float(difference.max()):.3g} from the fake-quantized one, whose largest value "
            f"is {largest:.3g}"
        )
