"""Parts of a network that do not train: chosen by patterns of the names of their modules."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from qtool.graph.sites.frames import Sites
from qtool.problems import Problem, did_you_mean, shown
from qtool.quantizers.fake_quantize import FakeQuantize


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let what patterns match train no more, in place.

    A pattern matches a module by its whole name, and with it all that the module consists of:
    weights, biases, the scales of the quantizers inside it.
    """
    for module in _matched(model, patterns):
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad = False


def still_norms(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """Return the batch norms that patterns match: those keep their statistics, too."""
    return [module for module in _matched(model, patterns) if isinstance(module, BatchNorm)]


def freeze_problems(network: nn.Module, patterns: Sequence[str]) -> list[Problem]:
    """Return what is wrong with patterns for a float network."""
    names = [name for name, _ in network.named_modules() if name]
    found = [
        ("freeze", f"{shown(pattern)} matches no module{did_you_mean(pattern, names)}")
        for pattern in patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
    still = {id(p) for module in _matched(network, patterns) for p in module.parameters()}
    if patterns and not found and all(id(p) in still for p in network.parameters()):
        found.append(("freeze", "nothing of the network is left to train; leave a part out"))
    return found


def _matched(model: nn.Module, patterns: Sequence[str]) -> Iterator[nn.Module]:
    """Yield the modules that are matched, and those inside them, such as their quantizers.

    Names that `prepare` gave are nobody's to match.
    """
    made = set[str]()
    for name, module in model.named_modules():
        owner = name.rpartition(".")[0]
        if owner in made or isinstance(module, FakeQuantize | Sites):
            made.add(name)
        parts = name.split(".")
        around = {".".join(parts[: end + 1]) for end in range(len(parts))} - made
        if name and any(fnmatchcase(each, pattern) for each in around for pattern in patterns):
            yield module
