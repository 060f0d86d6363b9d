"""Call sites: the numbered calls of functions in the blocks of a model.

A block is the model itself, or a module with children whose forward is not that of Sequential.
What a block's own code calls, and what modules without children call that it runs (its leaves),
are the block's calls: layer1.0:relu1 is the second ReLU that layer1.0 runs, be it F.relu in its
forward or a nn.ReLU that it holds.
"""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class CallSite:
    """One call of a function in one pass of a block, written BLOCK:FUNCTIONn.

    A block that is called several times in a pass of the model has the same sites in each call.

    Attributes:
        block: name of the block, "" for the model itself.
        function: its name in `qtool.graph.sites.functions`, such as add.
        number: which call of that function in the block, from 0, as the recorded pass made them.
        leaf: name of the leaf that makes the call, "" where the block's own code does.
        call: which call of the function by that leaf, or by the block's own code, in one call of
            the block. A pass finds its sites by leaf, function and call, so that a leaf that is
            skipped at random does not shift the calls behind it.
    """

    block: str
    function: str
    number: int
    leaf: str = ""
    call: int = 0

    def __str__(self) -> str:
        """Return BLOCK:FUNCTIONn."""
        return f"{self.block}:{self.key}"

    @property
    def key(self) -> str:
        """Return FUNCTIONn, the name of what stands there among the block's `sites`."""
        return f"{self.function}{self.number}"


def is_leaf(module: nn.Module) -> bool:
    """Tell whether what a module calls are calls of the block that runs it.

    Layers are leaves whatever they hold, such as what quantizes their weight.
    """
    return next(module.children(), None) is None or isinstance(
        module, nn.modules.conv._ConvNd | nn.Linear
    )


def is_block(module: nn.Module) -> bool:
    """Tell whether a module, which is not the model itself, is a block: has calls of its own."""
    runs = type(module).forward
    plain = runs is nn.Sequential.forward or runs is nn.Module.forward  # a list is never called
    return not plain and not is_leaf(module)


def is_dropout(module: nn.Module) -> bool:
    """Tell whether a leaf passes its input on in evaluation, and drops parts of it in training.

    Whatever it calls is one call of dropout, in both modes. That of nn.Dropout and its like is, and
    what drops the results of whole blocks at random, by the names that the field gives to it.
    """
    if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout):  # those shift values, too
        return False
    names = {kind.__name__ for kind in type(module).__mro__}
    known = {"_DropoutNd", "StochasticDepth", "DropPath"}
    return is_leaf(module) and not names.isdisjoint(known)
