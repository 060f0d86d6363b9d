"""Recording the graph of values: one real pass of a float model, no class swapped.

Hooks tell which block and which leaf runs; one function mode (`qtool.graph.sites.value_mode`) sees
what they call. Hooks of the user's run outside of the module that they are registered on.
"""

from collections.abc import Callable
from inspect import signature

from torch import nn
from torch.utils.hooks import RemovableHandle

from qtool.graph.inputs import Inputs, in_order
from qtool.graph.recorder import without_traces
from qtool.graph.sites.call_sites import is_block, is_dropout, is_leaf
from qtool.graph.sites.value_graph import ValueGraph
from qtool.graph.sites.value_mode import ValueMode


def record_values(model: nn.Module, inputs: Inputs) -> ValueGraph:
    """Run a float model once, in the mode it is in, and return the graph of its values.

    Args:
        model: left as it was, statistics of batch norms and random numbers included.
        inputs: of the pass; they are copied first, so that a model may write to them.
    """
    mode = ValueMode(model)
    with without_traces(model), _Hooks(model, mode):
        inputs.copied().call(model)
    return ValueGraph(
        tuple(mode.operations),
        mode.inputs,
        mode.outputs,
        {block: tuple(ways) for block, ways in mode.counts.items()},
        model.training,
    )


class _Hooks:
    """Tell a mode which modules run, while a model makes one pass."""

    def __init__(self, model: nn.Module, mode: ValueMode) -> None:
        self.model, self.mode = model, mode
        self.names = {module: name for name, module in model.named_modules()}
        self.handles: list[RemovableHandle] = []
        # what runs, and how to leave it
        self.entered: list[tuple[nn.Module, Callable[[object], object]]] = []

    def __enter__(self) -> None:
        for module in self.names:
            self.handles += (
                module.register_forward_pre_hook(self.before, with_kwargs=True),
                # before hooks of the user's, whose functions are no part of the module
                module.register_forward_hook(
                    self.after, with_kwargs=True, always_call=True, prepend=True
                ),
            )

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()

    def before(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        """Note that a module runs."""
        name, mode = self.names[module], self.mode
        leave: Callable[[object], object]
        if module is self.model:
            mode.begin((args, in_order(signature(module.forward).parameters, kwargs)))
            leave = mode.finish
        elif is_dropout(module) and not mode.in_leaf:
            mode.enter_dropout(name, (args, kwargs))
            leave = mode.leave_dropout
        elif is_leaf(module) or mode.in_leaf:
            mode.enter_leaf(name)
            leave = mode.leave_leaf
        elif is_block(module):
            mode.enter_block(name)
            leave = mode.leave_block
        else:
            leave = _itself
        self.entered.append((module, leave))

    def after(
        self,
        module: nn.Module,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        output: object,
    ) -> object:
        """Note that a module is done; a hook of the user's may have failed before it began."""
        if not self.entered or self.entered[-1][0] is not module:
            return output
        if output is not None:
            self.mode.unseen(type(module).__name__, (args, kwargs), output)
        return self.entered.pop()[1](output)


def _itself(output: object) -> object:
    return output
