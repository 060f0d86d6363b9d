"""A model's forward and backward pass compiled as a whole, quantizers and layers in one kernel."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qtool.console import say
from qtool.graph.calls import restart_calls
from qtool.quantizers.control import make_traceable

Forward = Callable[[Tensor], Tensor]
EXACT_DIVISION = "eager_numerics.division_rounding"  # else codes at ties differ on CUDA


def compiled_forward(model: nn.Module) -> Forward:
    """Return the model's forward pass in training, compiled when it is called for the first time.

    `begin_step` must be called before each pass. Scales, alpha and what schedules move may change
    without compiling again; a weight that stops training, or an `ema_min_max` range that looks at
    its values at some steps only, takes a second compilation.

    Where the model cannot be traced, or there is no compiler, its plain forward goes on instead,
    with one note.
    """
    make_traceable(model)
    options: dict[str, str | int | bool | Callable[..., object]] = {}
    if EXACT_DIVISION in torch._inductor.list_options():
        options[EXACT_DIVISION] = True
    compiled = torch.compile(model.forward, fullgraph=True, dynamic=False, options=options)
    return _WithFallback(model, compiled)


class _WithFallback:
    """Calls the compiled forward until that fails in its first pass."""

    def __init__(self, model: nn.Module, compiled: Forward) -> None:
        self._model, self._compiled, self._works = model, compiled, True

    def __call__(self, images: Tensor) -> Tensor:
        if not self._works:
            return self._model(images)
        restart_calls(self._model)
        try:
            return self._compiled(images)
        except Exception as error:  # compilers fail in many ways
            self._works = False
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            say(f"note: going on without compiling the model, which fails: {reason}")
            return self._model(images)
