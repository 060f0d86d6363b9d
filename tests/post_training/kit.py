"""What the tests of this room share."""

from collections.abc import Mapping

from torch import Tensor, nn

import qtool
from qtool.quantizers.layers import QuantLayer, quant_layers


def only_layer(
    layer: nn.Module, x: Tensor, weights: Mapping[str, object] | None = None
) -> tuple[QuantLayer, Tensor]:
    """Return a layer, quantized, and the input given, for which its inputs stay float."""
    settings = {"weights": dict(weights or {"bits": 4})}
    model = qtool.prepare(nn.Sequential(layer).eval(), settings, x)
    (made,) = quant_layers(model).values()
    return made, x
