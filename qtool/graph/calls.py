"""Which of its calls in one forward pass of the model this is: modules that count them."""

from torch import nn


class CountsCalls(nn.Module):
    """A module that knows which of its calls in one forward pass of the model this is.

    A pass of the model begins the count anew. Where its forward alone is called, as
    torch.compile(model.forward) does, no hook tells of passes, and the count goes round.

    Attributes:
        calls: how many there were.
        around: how many there are in one pass; None where that is not known.
        told: a pass that began the count anew is running.
    """

    def __init__(self, around: int | None = None) -> None:
        super().__init__()
        self.calls, self.around, self.told = 0, around, False

    def next_call(self) -> int:
        """Return the number of this call, from 0."""
        number = self.calls
        self.calls = number + 1
        if self.around and not self.told:
            self.calls %= self.around
        return number


def count_calls(model: nn.Module) -> None:
    """Let every pass of a model begin the count of its modules' calls anew."""
    model.register_forward_pre_hook(restart_calls)
    model.register_forward_hook(end_calls)


def restart_calls(model: nn.Module, args: object = ()) -> None:
    """Begin to count calls anew; a forward pre-hook of the whole model."""
    _count_from_zero(model, told=True)


def end_calls(model: nn.Module, args: object = (), output: object = None) -> None:
    """End the pass that calls were counted in; a forward hook of the whole model."""
    _count_from_zero(model, told=False)


def _count_from_zero(model: nn.Module, *, told: bool) -> None:
    for module in model.modules():
        if isinstance(module, CountsCalls):
            module.calls, module.told = 0, told
