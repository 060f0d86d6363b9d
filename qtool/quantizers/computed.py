"""Layers of a subclass that compute their weight in each pass: what they compute is quantized.

The subclass's own forward runs, and where it calls its function, input and weight are rounded.
"""

from collections.abc import Callable, Iterable
from typing import cast

from torch import Tensor
from torch.overrides import TorchFunctionMode

from qtool.graph.sites.functions import LAYERS, argument, function_of
from qtool.graph.sites.running import apart, run_leaf
from qtool.graph.sites.swapped_classes import class_of
from qtool.graph.subclasses import weight_computed_by
from qtool.quantizers.layer import QuantLayer


class _Rounding(TorchFunctionMode):
    """Rounds what a layer gives to its function."""

    def __init__(self, layer: QuantLayer) -> None:
        super().__init__()
        self.layer = layer

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Call a function, that of the layer with rounded operands."""
        kwargs = kwargs or {}
        if function_of(func, args, kwargs) not in LAYERS:
            return func(*args, **kwargs)
        x, weight = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
        assert isinstance(x, Tensor)
        assert isinstance(weight, Tensor)
        rounded = apart(self.layer.quantized_operands, x, weight)
        more = {key: value for key, value in kwargs.items() if key not in ("input", "weight")}
        return func(*rounded, *args[2:], **more)


class ComputesWeight(QuantLayer):
    """What quantized layers have that compute their weight in each pass."""

    @property
    def whole_weight(self) -> Tensor:
        """Return the weight that is rounded, as the layer computes it now."""
        return apart(weight_computed_by, self, self._forward)

    @property
    def _forward(self) -> Callable[..., object]:
        """Return the forward of the subclass, which is the last of the bases."""
        return class_of(self).__bases__[-1].forward

    def forward(self, input: Tensor) -> Tensor:
        """Return what the layer makes of x_hat and w_hat."""
        return run_leaf(self, self._rounded, input)

    def _rounded(self, input: Tensor) -> Tensor:
        with _Rounding(self):
            return cast(Tensor, self._forward(self, input))

    def freeze(self) -> None:
        """Let no parameter train that the weight is computed of."""
        for name, parameter in self.named_parameters(recurse=False):
            if name != "bias":
                parameter.requires_grad = False
                parameter.grad = None
