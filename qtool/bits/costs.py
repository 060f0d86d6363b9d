"""What a network's layers cost at each width: bytes, bits, bit-operations."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qtool.export.writing.weight_sizes import WeightBytes, weight_bytes
from qtool.quantizers.layers import quant_layers
from qtool.settings.tensors import WeightQuantization

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs whose weight is quantized.

    Attributes:
        shape: of the weight.
        weights: how many.
        macs: multiplications, each with an addition, for one image.
        input_bits: of what it reads; float counts 32.
        stored: its weight stands in a file; False where another layer's is the same.
    """

    name: str
    shape: tuple[int, ...]
    weights: int
    macs: int
    input_bits: int
    stored: bool = True

    def bytes_at(self, settings: WeightQuantization) -> WeightBytes:
        """Return what its weight takes in a file, at the width that settings say."""
        if not self.stored:
            return WeightBytes(0, 0, 0, "")
        return weight_bytes(self.name, self.shape, settings.integer_grid)

    def bit_operations(self, bits: int) -> int:
        """Return multiplications times bits of a weight times bits of an input."""
        return self.macs * bits * self.input_bits


@dataclass(frozen=True)
class NetworkCost:
    """What a prepared network costs.

    Attributes:
        layers: by name, those whose weights are quantized.
        float_bit_operations: of what has no quantized weight, for one image: 32 bits times those
            of an input.
    """

    layers: Mapping[str, LayerCost]
    float_bit_operations: int

    def bit_operations(self, widths: Mapping[str, int]) -> int:
        """Return those of the whole network for one image, as `qtool check` counts them."""
        quantized = sum(self.layers[name].bit_operations(bits) for name, bits in widths.items())
        return quantized + self.float_bit_operations

    def mean_bits(self, widths: Mapping[str, int]) -> float:
        """Return the bits of an average quantized weight."""
        weights = {name: self.layers[name].weights for name in widths}
        return sum(bits * weights[n] for n, bits in widths.items()) / sum(weights.values())


def cost_of_network(model: nn.Module, macs: Mapping[str, int]) -> NetworkCost:
    """Return what a prepared network costs.

    Args:
        model: from `prepare`.
        macs: of the float network, from `macs_of`.
    """
    seen, layers, rest = set[int](), dict[str, LayerCost](), macs[""]
    others = 0
    for name, layer in quant_layers(model).items():
        inputs, own = layer.quantizer_of_input, macs.get(name, 0)
        input_bits = FLOAT_BITS if inputs is None else inputs.bits
        rest -= own
        if layer.weight_quantizer is None:
            others += own * FLOAT_BITS * input_bits
            continue
        layers[name] = LayerCost(
            name,
            tuple(layer.weight.shape),
            layer.weight.numel(),
            own,
            input_bits,
            stored=id(layer.weight) not in seen,
        )
        seen.add(id(layer.weight))
    return NetworkCost(layers, others + rest * FLOAT_BITS**2)


def macs_of(network: nn.Module, image: Tensor) -> dict[str, int]:
    """Return multiplications and additions of a network for one image: "" is all of them.

    Counted are convolutions and matrix products, by module; a multiplication with an addition is
    one.

    Args:
        network: in float, on the image's device.
        image: [1, C, H, W].
    """
    training = network.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(image)
    network.train(training)
    counts: Mapping[str, Mapping[object, int]] = counter.get_flop_counts()
    found = {name: sum(each.values()) // 2 for name, each in counts.items()}
    root = type(network).__name__
    inside = {name.removeprefix(f"{root}."): count for name, count in found.items() if name != root}
    return inside | {"": found.get("Global", 0)}
