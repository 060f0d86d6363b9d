"""The method that is taken by default: the best of what costs seconds."""

import torch
from torch import Tensor

from qtool.post_training.bias_correction import shift_output
from qtool.post_training.methods import METHODS, Calibrated
from qtool.post_training.outputs import by_channel, float_outputs, places
from qtool.post_training.walk import called_once, in_one, walk
from qtool.quantizers.layers import QuantLayer
from qtool.reports.improvements import Applied


@METHODS.add
@torch.no_grad()
def default(given: Calibrated) -> list[Applied]:
    """Correct biases, layer by layer in the order of the network."""
    model, inputs = given.model, in_one(given.batches)
    expected = float_outputs(model, inputs, called_once(model))
    done: list[Applied] = []

    def improve(name: str, layer: QuantLayer, x: Tensor) -> None:
        x, weight = layer.quantized_operands(x, layer.whole_weight)
        given = by_channel(layer, layer.of_operands(x, weight))
        by = expected[name].mean - given.double().mean(0)
        shift_output(model, name, layer, by)
        rows = given[places(len(given))]
        done.append(
            Applied(
                layer=name,
                step="bias_correction",
                error_before=expected[name].error(rows),
                error_after=expected[name].error(rows + by.float()),
            )
        )

    walk(model, inputs, improve)
    return done
