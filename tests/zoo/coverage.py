"""What must be named: every weight that is used as it is, and every norm that stays."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

PLAIN = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


class Uses(TorchFunctionMode):
    """Notes which parameters of two or more dimensions a pass uses, and inside which modules."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.running: list[str] = []
        self.weights = {id(p): p for p in model.parameters() if p.ndim > 1}
        self.found: list[tuple[int, frozenset[str]]] = []
        self.handles = []
        for name, module in model.named_modules():
            enter, leave = self._hooks(name)
            self.handles.append(module.register_forward_pre_hook(enter, prepend=True))
            self.handles.append(module.register_forward_hook(leave, always_call=True))

    def _hooks(self, name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        return (
            lambda module, args: self.running.append(name),
            lambda module, args, made: (self.running.pop(), None)[1],
        )

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(made)):
            for leaf in tree_leaves((args, kwargs or {})):
                if id(leaf) in self.weights:
                    self.found.append((id(leaf), frozenset(self.running)))
        return made


def names_of(model: nn.Module) -> dict[int, set[str]]:
    """Return every module's and parameter's id -> all of its names."""
    names: dict[int, set[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), set()).add(name)
        for inner, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            names.setdefault(id(parameter), set()).update({name, f"{name}.{inner}".lstrip(".")})
    return names


def unnamed_weights(model: nn.Module, run: Callable[[], object], told: object) -> list[str]:
    """Return weights that evaluation uses in float although nothing says so.

    Args:
        model: the float network in evaluation.
        run: runs it.
        told: what conversion says: `layers` and `left_float`.
    """
    names = names_of(model)
    every = {name: names[id(model.get_submodule(name))] for name in dict(model.named_modules())}
    quantized = set[str]().union(*(every[spec.name] for spec in told.layers))
    known = set(told.left_float) | set[str]().union(
        *(every[name] for name in told.left_float if name in every)
    )
    with Uses(model) as uses:
        run()
    for handle in uses.handles:
        handle.remove()
    found, ran = [], set[str]().union(*(inside for _, inside in uses.found))
    for weight, inside in uses.found:
        in_its_layer = {n for n in inside & quantized if owns(model.get_submodule(n), weight)}
        if not in_its_layer and not names[weight] & known:
            found.append(f"{max(names[weight], key=len)!r} is used in float inside {max(inside)!r}")
    said = " ".join(told.notes)
    found += [
        f"{s.name} never runs, and nothing says so"
        for s in told.layers
        if not every[s.name] & ran and s.name not in said
    ]
    plain = [n for n, m in model.named_modules() if type(m) in PLAIN]
    found += [f"nothing is said of {n}" for n in plain if not every[n] & (quantized | known)]
    return sorted(set(found))


def owns(module: nn.Module, weight: int) -> bool:
    """Tell whether a parameter belongs to a module or to its parametrizations."""
    return any(id(parameter) == weight for parameter in module.parameters())


def unnamed_norms(model: nn.Module, run: Callable[[], object], told: object) -> list[str]:
    """Return norms with statistics that read a quantized layer, and are not spoken of."""
    names = names_of(model)
    made: dict[int, Tensor] = {}  # kept, so that no other tensor takes an id
    found: list[str] = []
    folded = {spec.batch_norm for spec in told.layers if spec.batch_norm}
    folded = set[str]().union(*(names[id(model.get_submodule(name))] for name in folded))
    said = " ".join([*told.left_float, *told.notes, *getattr(told, "not_folded", {})])
    said = f" {said} ".replace(",", " ").replace(":", " ")

    def after(module: nn.Module, args: object, output: Tensor) -> None:
        made[id(output)] = output

    def look(module: nn.Module, args: tuple[object, ...]) -> None:
        of_it = names[id(module)]
        spoken = any(f" {name} " in said for name in of_it)
        if args and id(args[0]) in made and not of_it & folded and not spoken:
            found.append(f"the norm {min(of_it)} stays, and nothing says so")

    handles = [model.get_submodule(spec.name).register_forward_hook(after) for spec in told.layers]
    norms = [m for m in model.modules() if isinstance(m, _NormBase) or is_frozen_norm(m)]
    handles += [norm.register_forward_pre_hook(look) for norm in norms]
    run()
    for handle in handles:
        handle.remove()
    return found


def is_frozen_norm(module: nn.Module) -> bool:
    """Tell whether a module holds statistics of its own."""
    return {"running_mean", "running_var"} <= {name for name, _ in module.named_buffers()}


def leftovers(integer: nn.Module) -> list[str]:
    """Return modules of an integer model that belong to training."""
    return [
        f"{name!r} is still a {type(module).__name__}"
        for name, module in integer.named_modules(remove_duplicate=False)
        if type(module).__module__.startswith("qtool.quantizers")
    ]


def finite(tensors: Iterable[Tensor]) -> bool:
    """Tell whether every value is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
