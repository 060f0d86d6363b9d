"""Quantizers at the outputs of ReLUs: everything that reads a ReLU then reads the grid.

The lower bound of an unsigned grid does ReLU's work, so that the two are one: the quantized ReLU
of Yin et al., 2019, arXiv:1903.05662.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from qtool.graph.calls import CountsCalls
from qtool.graph.module_sites import Site
from qtool.graph.sites.running import runs_apart
from qtool.graph.swap import Part
from qtool.quantizers.activations import ActivationQuantizer


class QuantReLU(Part, CountsCalls):
    """A ReLU whose output is fake-quantized, by a quantizer of its own for each call.

    Attributes:
        quantizers: one for each call in a forward pass; Identity where the call stays float.
    """

    maker = "qtool.prepare"

    def __init__(self, quantizers: list[ActivationQuantizer | None]) -> None:
        super().__init__(len(quantizers))
        self.quantizers = nn.ModuleList(q or nn.Identity() for q in quantizers)

    @runs_apart
    def forward(self, input: Tensor) -> Tensor:
        """Return the quantized ReLU of the input, same shape."""
        call = self.next_call()
        quantizer = self.quantizers[call] if call < len(self.quantizers) else None
        if isinstance(quantizer, ActivationQuantizer):
            return quantizer(input, rectify=True)
        return F.relu(input)


def quant_relus(model: nn.Module) -> dict[str, QuantReLU]:
    """Return every ReLU with quantizers by its name, each once."""
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantReLU)}


def site_of(quantizer: ActivationQuantizer, model: nn.Module) -> Site:
    """Return the ReLU and the call that a quantizer stands at.

    Raises:
        LookupError: If it stands at none of the model's.
    """
    for name, relu in quant_relus(model).items():
        for call, found in enumerate(relu.quantizers):
            if found is quantizer:
                return Site(name, call)
    raise LookupError("the quantizer stands at no ReLU of this model")
