"""What stands at the door of `prepare`: models and examples that nothing right can be made of.

Everything is asked for what it does, not for its name: who makes a weight, where its values are,
what its numbers are. What is found is refused by its name, in the words of qtool.limits, before
anything is trained.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from qtool import limits
from qtool.errors import QtoolError
from qtool.graph.copies import copy_of, runs_the_original, what_cannot_be_copied
from qtool.graph.inputs import Inputs, described, tensors_in
from qtool.graph.swap import ATTRIBUTE, Kept, Part
from qtool.quantizers.layers import QUANT_TYPES, plain_type, quant_layers
from qtool.settings.quantization import Quantization

WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
OTHER_QUANTIZERS = ("WeightedQuantizedModule", "FakeQuantizeBase", "ObserverBase")


def check_model(model: nn.Module, settings: Quantization, inputs: Inputs | None) -> None:
    """Check that a model can be copied, changed and quantized as the settings say.

    Args:
        model: what was given to be prepared.
        settings: which of its layers are to be quantized.
        inputs: the example, where there is one.

    Raises:
        ModelError: Names what is refused, and says what to do; a ValueError, too.
    """
    if not isinstance(model, nn.Module):
        raise limits.NOT_A_MODULE.error(given=described(model))
    _check_kind(model)
    _check_place(model, has_example=inputs is not None)
    check_layers(model, settings)
    replaced = runs_the_original(model)
    if replaced is not None:
        raise limits.FORWARD_REPLACED.error(module=replaced)


def check_layers(model: nn.Module, settings: Quantization) -> None:
    """Check that the parameters of layers that are to be quantized, and of norms, are plain ones.

    Raises:
        ModelError: If some are not; names the layer.
    """
    for name, module in model.named_modules():
        _check_layer(name, module, settings)


def copied(model: nn.Module) -> nn.Module:
    """Return a copy of a model.

    Raises:
        ModelError: If it cannot be copied; names what in it cannot.
    """
    try:
        return copy_of(model)
    except Exception as error:
        reason = _first_line(error)
        part = what_cannot_be_copied(model)
        raise limits.NOT_COPIED.error(part=part, error=reason) from error


def check_example(inputs: Inputs, settings: Quantization) -> None:
    """Check that an example has values which scales can be taken from.

    Raises:
        ModelError: If it is empty or on the meta device, or all zeros where inputs are quantized.
    """
    for name, value in inputs.named.items():
        for tensor in Inputs((value,)).tensors:
            if tensor.is_meta:
                raise limits.ON_META.error(tensor=f"the example ({name})")
            if not tensor.numel():
                raise limits.EMPTY_EXAMPLE.error(input=name, shape=list(tensor.shape))
    # whole numbers may be indices, of which 0 is one like any other; uint8 are pixels
    values = [t for t in inputs.tensors if t.is_floating_point() or t.dtype == torch.uint8]
    if values and _quantizes_inputs(settings) and not any(bool(t.any()) for t in values):
        raise limits.ZERO_EXAMPLE.error()


@contextmanager
def named_failures() -> Iterator[None]:
    """Let a pass of the example that fails inside say so.

    Raises:
        ModelError: If it fails.
    """
    try:
        yield
    except (QtoolError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise limits.FAILS.error(error=_first_line(error)) from error


def check_output(output: object) -> None:
    """Check that a model returns something that can be compared, and exported.

    Raises:
        ModelError: If there is no tensor in its output.
    """
    if not any(True for _ in tensors_in(output)):
        raise limits.NO_OUTPUT.error(given=described(output))


def materialized(model: nn.Module, inputs: Inputs) -> nn.Module:
    """Return a model whose lazy modules, if there are any, have got their shapes."""
    if any(is_lazy(tensor) for _, tensor in _tensors(model)):
        training = {module: module.training for module in model.modules()}
        with torch.no_grad(), torch.random.fork_rng(devices=[]), named_failures():
            inputs.copied().call(model.eval())
        for module, mode in training.items():
            module.training = mode
    return model


def refuse_if_nothing_is_quantized(
    model: nn.Module, settings: Quantization, left_float: Mapping[str, str]
) -> None:
    """Refuse a model of which all is left float, although the settings ask for more.

    Raises:
        ModelError: Says why each layer is left float.
    """
    if quant_layers(model) or not _asks_for_something(settings):
        return
    reasons = [f"{name or type(model).__name__}: {why}" for name, why in left_float.items()]
    more = f", and {len(reasons) - 5} more" if len(reasons) > 5 else ""
    why = "; ".join(reasons[:5]) + more if reasons else "the model has no layer with weights"
    raise limits.NOTHING_TO_QUANTIZE.error(why=why)


def refuse_if_nothing_is_chosen(model: nn.Module, settings: Quantization) -> None:
    """Refuse settings that leave every layer of a float model float, although they ask for more.

    Raises:
        ModelError: Says which setting leaves which layer float.
    """
    named = {n: m for n, m in model.named_modules() if may_be_quantized(m)}
    if not any(is_to_be_quantized(name, module, settings) for name, module in named.items()):
        left = {name: limits.CHOSEN.text(where=settings.for_layer(name)[2]) for name in named}
        refuse_if_nothing_is_quantized(model, settings, left)


def _check_kind(model: nn.Module) -> None:
    """Refuse what is no float model of plain modules."""
    own = getattr(model, ATTRIBUTE, None)
    if isinstance(own, Kept):
        limit = limits.PREPARED_ALREADY if own.maker == "qtool.prepare" else limits.INTEGER_ALREADY
        raise limit.error()
    if own is not None:
        raise limits.TAKEN_ATTRIBUTE.error()
    for name, module in model.named_modules():
        kind = type(module).__name__
        called = f"{name} ({kind})" if name else f"the model ({kind})"
        bases = {base.__name__ for base in type(module).__mro__ if _is_torchs(base)}
        kept = getattr(module, ATTRIBUTE, None)
        if isinstance(kept, Kept):
            raise limits.PREPARED_INSIDE.error(module=called, maker=kept.maker)
        if isinstance(module, Part):
            raise limits.PREPARED_INSIDE.error(module=called, maker=module.maker)
        if isinstance(module, torch.jit.ScriptModule):
            raise limits.SCRIPTED.error(module=name or "the model", type=kind)
        if "OptimizedModule" in bases:
            raise limits.COMPILED.error(module=name or "the model")
        if bases & set(WRAPPERS):
            raise limits.WRAPPED.error(module=name or "the model", type=kind)
        if bases & set(OTHER_QUANTIZERS):
            raise limits.QUANTIZED_BY_TORCH.error(module=name or "the model", type=kind)


def _check_place(model: nn.Module, *, has_example: bool) -> None:
    """Refuse parameters without values, and those that are not together."""
    lazy = [name for name, tensor in _tensors(model) if is_lazy(tensor)]
    if lazy and not has_example:
        raise limits.LAZY.error(layer=lazy[0].rpartition(".")[0] or "the model")
    devices: dict[torch.device, str] = {}
    for name, tensor in _tensors(model):
        if is_lazy(tensor):
            continue
        if tensor.is_meta:
            raise limits.ON_META.error(tensor=name)
        if isinstance(tensor, nn.Parameter):
            devices.setdefault(tensor.device, name)
    if len(devices) > 1:
        (device, first), (other, second) = list(devices.items())[:2]
        raise limits.TWO_DEVICES.error(first=first, device=device, second=second, other=other)


def _check_layer(name: str, module: nn.Module, settings: Quantization) -> None:
    """Refuse a layer that is to be quantized, or a norm, whose parameters are not plain ones."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        for tensor in _made_anew(module):
            remove = _remover(module, tensor)
            raise limits.HOOKED_NORM.error(layer=name, tensor=tensor, remove=remove)
    if not is_to_be_quantized(name, module, settings):
        return
    called = name or type(module).__name__
    for tensor in _made_anew(module):
        remove = _remover(module, tensor)
        raise limits.HOOKED.error(layer=called, tensor=tensor, remove=remove)
    for key, parameter in module.named_parameters(recurse=False):
        if is_lazy(parameter):
            continue
        if type(parameter) is not nn.Parameter:
            kind = type(parameter).__name__
            raise limits.TENSOR_SUBCLASS.error(layer=called, tensor=key, type=kind)
        if parameter.layout is not torch.strided:
            layout = str(parameter.layout).removeprefix("torch.")
            raise limits.LAYOUT.error(layer=called, tensor=key, layout=layout)
        if parameter.dtype != torch.float32:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise limits.DTYPE.error(layer=called, tensor=key, dtype=dtype)


def is_to_be_quantized(name: str, module: nn.Module, settings: Quantization) -> bool:
    """Tell whether a layer has a type that is quantized, and settings that say so."""
    if not may_be_quantized(module):
        return False
    weights, activations, _ = settings.for_layer(name)
    return weights is not None or activations is not None


def may_be_quantized(module: nn.Module) -> bool:
    """Tell whether a module computes what a Conv2d or Linear does, but for who makes its weight."""
    kind = kind_of(module)
    return plain_type(module) is not None or (
        kind is not type(module) and any(kind.forward is plain.forward for plain in QUANT_TYPES)
    )


def kind_of(module: nn.Module) -> type[nn.Module]:
    """Return the type of a module, before parametrizations made it a type of its own."""
    return parametrize.type_before_parametrizations(module)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module itself, and what its parametrizations make, by name."""
    if isinstance(module, parametrize.ParametrizationList):
        return {}  # they belong to the module that is parametrized
    made = getattr(module, "parametrizations", ()) if parametrize.is_parametrized(module) else ()
    own: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    return own | {name: getattr(module, name) for name in made}


def _made_anew(module: nn.Module) -> Iterator[str]:
    """Yield those of weight and bias that something computes in each pass."""
    for name in ("weight", "bias"):
        held = name in module._parameters
        computed = not held and isinstance(getattr(module, name, None), Tensor)
        if computed or parametrize.is_parametrized(module, name):
            yield name


def _remover(module: nn.Module, tensor: str) -> str:
    """Return the call that makes a tensor of a module, here `layer`, a parameter again."""
    if parametrize.is_parametrized(module, tensor):
        return f"torch.nn.utils.parametrize.remove_parametrizations(layer, '{tensor}')"
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == tensor:
            return f"torch.nn.utils.prune.remove(layer, '{tensor}')"
        if isinstance(hook, WeightNorm) and hook.name == tensor:
            return f"torch.nn.utils.remove_weight_norm(layer, '{tensor}')"
        if isinstance(hook, SpectralNorm) and hook.name == tensor:
            return f"torch.nn.utils.remove_spectral_norm(layer, '{tensor}')"
    return f"layer.{tensor} = torch.nn.Parameter(layer.{tensor}), without what computes it,"


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers by name."""
    yield from model.named_parameters()
    yield from model.named_buffers()


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _quantizes_inputs(settings: Quantization) -> bool:
    return settings.activations is not None or any(o.activations for o in settings.overrides)


def _asks_for_something(settings: Quantization) -> bool:
    sides = [settings.weights, settings.activations]
    sides += [side for o in settings.overrides for side in (o.weights, o.activations)]
    return any(side is not None for side in sides)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
