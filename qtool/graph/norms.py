"""Norms: which of them can be folded into the layer before them, and why the others cannot.

A norm is folded where it alone reads a layer's output, both run once, and what it does in
evaluation mode is a gain and a shift of each of the layer's channels.
"""

from collections.abc import Iterator

from torch import nn

from qtool.graph.affine import affine_of, channel_axis
from qtool.graph.recording import ModuleCall, Norm, Reason, Recording
from qtool.graph.sites.swapped_classes import class_of

# y = (x - mean) / sqrt(variance + eps) * gamma + beta along axis 1, in evaluation mode
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
FUNCTIONS = {
    "batch_norm",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "local_response_norm",
    "rms_norm",
}


def may_be_norm(module: nn.Module) -> bool:
    """Tell whether a module may be a norm, before it is seen at work."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return any(tensor.is_floating_point() for tensor in own) or is_called_norm(module)


def is_called_norm(module: nn.Module) -> bool:
    """Tell whether a module's type, or one that it comes from, is called a norm."""
    return any("norm" in kind.__name__.lower() for kind in type(module).__mro__)


def is_batch_norm(module: nn.Module) -> bool:
    """Tell whether a module is one of torch's batch norms, and has statistics of its own."""
    return isinstance(module, BATCH_NORMS) and (
        class_of(module) in BATCH_NORMS and module.running_mean is not None
    )


def find_norms(model: nn.Module, told: Recording) -> list[Norm]:
    """Return every norm that a pass of `model` called, and why those stay that cannot be folded.

    In evaluation mode those are named, too, that it did not call.
    """
    behind = list(_behind_layers(model, told))
    # of norms one inside the other, the outermost that can be folded is; the last call to end
    folded = {norm.layer: norm.name for norm in behind if not norm.reason}
    found = [norm for norm in behind if folded.get(norm.layer, norm.name) == norm.name]
    found += _functions(told)
    known = {norm.name for norm in behind} | {
        name for name in told.may_be_norms if any(name.startswith(f"{n}.") for n in folded.values())
    }
    called = told.calls_of("norm")
    for name in told.may_be_norms:
        if name in known or not is_called_norm(model.get_submodule(name)):
            continue
        if called[name]:
            found.append(Norm(name, "", "BEHIND_NO_LAYER"))
        elif not told.training:
            found.append(Norm(name, "", "NORM_UNCALLED"))
    return found


def channel_norms(model: nn.Module, told: Recording) -> set[str]:
    """Return the norms that are a gain and a shift of each channel of images [B, C, ...].

    Whether a layer is before them does not matter.
    """
    found = set()
    for call in told.module_calls:
        alone = len(call.read) == len(call.made) == 1
        if call.role != "norm" or not 3 <= len(call.shape) <= 5 or not alone:
            continue
        norm = model.get_submodule(call.site.module)
        if is_called_norm(norm) and _is_affine(norm, call.shape, 1 - len(call.shape)):
            found.add(call.site.module)
    return found


def _behind_layers(model: nn.Module, told: Recording) -> Iterator[Norm]:
    """Yield the modules that read a layer's output, and are norms by what they do or are called."""
    for call in told.module_calls:
        maker = None if call.subject is None else told.producers.get(call.subject)
        if call.role != "norm" or not isinstance(maker, ModuleCall) or maker.role != "layer":
            continue
        layer, name = maker.site.module, call.site.module
        norm, axis = model.get_submodule(name), channel_axis(model.get_submodule(layer))
        shape, same = maker.shape, call.shape == maker.shape and len(call.made) == 1
        folds = same and _is_affine(norm, shape, axis)
        if not folds and not is_called_norm(norm):
            continue
        why = _why_not_alone(call, maker, told)
        reason: Reason = why or ("" if folds else _why_not_affine(norm, shape, axis))
        words = {
            "layer": layer or "the model",
            "type": class_of(norm).__name__,
            "shape": list(shape),
            "times": max(told.calls_of("layer")[layer], told.calls_of("norm")[name]),
        }
        yield Norm(name, layer, reason, words, shape, axis)


def _functions(told: Recording) -> Iterator[Norm]:
    """Yield the functions that normalize a layer's output, called in no module that may be one."""
    for call in told.function_calls:
        maker = None if call.subject is None else told.producers.get(call.subject)
        if call.name not in FUNCTIONS or call.inside is not None:
            continue
        if isinstance(maker, ModuleCall) and maker.role == "layer":
            layer = maker.site.module
            yield Norm(f"{call.name} after {layer}", layer, "NORM_FUNCTION", {"layer": layer})


def _why_not_alone(call: ModuleCall, maker: ModuleCall, told: Recording) -> Reason:
    """Return why a norm and a layer are not each other's alone, "" where they are."""
    value = maker.made[0]
    if told.calls_of("layer")[maker.site.module] > 1 or told.calls_of("norm")[call.site.module] > 1:
        return "CALLED_OFTEN"
    if call.read != (value,):
        return "READS_MORE"
    around, own = set(told.sites_around(call)), call.site
    for other in told.calls_in_order:
        passes_on = isinstance(other, ModuleCall) and other.site in around
        within = own == getattr(other, "site", None) or own in told.sites_around(other)
        if value in other.read and not passes_on and not within:
            return "READ_BY_OTHERS"
    return "READ_BY_OTHERS" if value in told.outputs else ""


def _is_affine(norm: nn.Module, shape: tuple[int, ...], axis: int) -> bool:
    if is_batch_norm(norm):
        return len(shape) + axis == 1
    return affine_of(norm, shape, axis) is not None


def _why_not_affine(norm: nn.Module, shape: tuple[int, ...], axis: int) -> Reason:
    """Return why a norm is no gain and shift of a layer's channels."""
    if isinstance(norm, nn.modules.batchnorm._NormBase) and norm.running_mean is None:
        return "STATISTICS_OF_INPUT"
    others = [other for other in range(-len(shape), 0) if other != axis]
    return "OTHER_AXIS" if any(_is_affine(norm, shape, a) for a in others) else "NOT_AFFINE"
