"""An average of a network over its training steps, which is what is judged, converted and exported.

    e <- d e + (1 - d) w   after each step, from the weights before the first one

As timm's ModelEma does, it takes in everything that a state_dict holds as real numbers: weights,
biases, the scales of quantizers, learned or not, and the statistics of batch norms. Those are of
the weights that they were seen with: beside averaged weights, the newest would be of another
network. What is a count or a decision, as which weights are frozen, stays that of the newest.
"""

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.oscillation import OscillationTracker
from qtool.stopping import held_back

Place = tuple[Mapping[str, Tensor | None], str]  # where a module keeps a tensor


class Average:
    """The average of a model, beside the newest weights, which go on training."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with a model as it is; its tensors are looked up where they are kept."""
        self._decay = decay
        self._places = dict(_places(model))
        self._means = {name: live.detach().clone() for name, live in self._live().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights that a step has left."""
        live, means = list(self._live().values()), list(self._means.values())
        torch.ops.aten._foreach_lerp_.Scalar(means, live, 1 - self._decay)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Let the model be its average while inside; a stop by a signal leaves it as it was."""
        kept = {name: live.detach().clone() for name, live in self._live().items()}
        try:
            with held_back():
                self.put()
            yield
        finally:
            with held_back():
                self._put(kept)

    def put(self) -> None:
        """Let the model be its average."""
        self._put(self._means)

    @torch.no_grad()
    def take(self) -> None:
        """Let the average be what the model is now."""
        for name, live in self._live().items():
            self._means[name].copy_(live)

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds: the averages under their names in the state_dict."""
        return dict(self._means)

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor] | None) -> None:
        """Take back what `state` returned.

        Raises:
            ValueError: If there is none, or something has another name, type or shape, or is not
                finite; names it.
        """
        if state is None or state.keys() != self._means.keys():
            raise ValueError("the average of the weights is missing, or of another network")
        for name, mean in self._means.items():
            given = state[name]
            if given.dtype != mean.dtype or given.shape != mean.shape or not _is_finite(given):
                raise ValueError(f"the average of {name} is not what it was")
            mean.copy_(given)

    def _live(self) -> dict[str, Tensor]:
        found = {name: tensors[key] for name, (tensors, key) in self._places.items()}
        return {name: live.detach() for name, live in found.items() if live is not None}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, live in self._live().items():
            live.copy_(values[name])


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _places(model: nn.Module) -> Iterator[tuple[str, Place]]:
    """Yield what is averaged, by its name in the state_dict; a shared tensor has several."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, OscillationTracker):
            continue  # how codes have changed is of the newest weights alone
        left_out = set(module._non_persistent_buffers_set)
        if isinstance(module, FakeQuantize):
            left_out.add("alpha")  # a schedule's
        for tensors in (module._parameters, module._buffers):
            for key, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point() and key not in left_out:
                    yield f"{prefix}.{key}".lstrip("."), (tensors, key)
