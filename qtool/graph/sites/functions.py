"""The functions that a graph of values knows by name, and what their other arguments say.

One name stands for every form of a function: add is `x + y`, `x += y`, torch.add and Tensor.add_.
Some calls have a name only for certain arguments: a mean is an average pooling where it goes over
height and width (and depth), a clamp at 0 a ReLU. What has no name here is "other" in a graph of
values.

To add one, write its forms into `_FORMS`; and into `PASSES_ON` where each element that it makes is
one that it was given, or 0.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

# name -> how PyTorch spells it, as function, method, operator or attribute
_FORMS = {
    "conv1d": "conv1d",
    "conv2d": "conv2d",
    "conv3d": "conv3d",
    "conv_transpose1d": "conv_transpose1d",
    "conv_transpose2d": "conv_transpose2d",
    "conv_transpose3d": "conv_transpose3d",
    "linear": "linear",
    "batch_norm": "batch_norm",
    "layer_norm": "layer_norm",
    "group_norm": "group_norm",
    "instance_norm": "instance_norm",
    "rms_norm": "rms_norm",
    "relu": "relu relu_",
    "clip": "hardtanh hardtanh_ relu6 relu6_ clamp clamp_ clip clip_ clamp_min clamp_min_",
    "hardswish": "hardswish hardswish_",
    "hardsigmoid": "hardsigmoid hardsigmoid_",
    "silu": "silu silu_",
    "sigmoid": "sigmoid sigmoid_ expit",
    "gelu": "gelu",
    "softmax": "softmax",
    "tanh": "tanh tanh_",
    "elu": "elu elu_",
    "leaky_relu": "leaky_relu leaky_relu_",
    "prelu": "prelu",
    "mish": "mish mish_",
    "add": "add add_ __add__ __iadd__ __radd__ iadd",
    "sub": "sub sub_ subtract subtract_ __sub__ __isub__ isub __rsub__ rsub",
    "mul": "mul mul_ multiply multiply_ __mul__ __imul__ __rmul__ imul",
    "div": "div div_ divide divide_ true_divide true_divide_ truediv itruediv __truediv__"
    " __itruediv__",
    "cat": "cat concat concatenate",
    "avg_pool": "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"
    " adaptive_avg_pool3d mean",
    "max_pool": " ".join(
        f"{form}max_pool{n}d{more}"
        for form in ("", "adaptive_")
        for n in (1, 2, 3)
        for more in ("", "_with_indices")
    )
    + " amax",
    "flatten": "flatten ravel",
    "reshape": "view reshape unflatten view_as reshape_as",
    "transpose": "transpose transpose_ permute swapaxes swapdims movedim moveaxis t T mT adjoint",
    "split": "split chunk tensor_split split_with_sizes unbind",
    "slice": "__getitem__ getitem narrow select",
    "squeeze": "squeeze squeeze_ unsqueeze unsqueeze_",
    "expand": "expand expand_as broadcast_to repeat tile repeat_interleave",
    "roll": "roll flip",
    "shuffle": "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle",
    "dropout": "dropout dropout_ dropout1d dropout2d dropout3d feature_dropout feature_dropout_",
    "contiguous": "contiguous clone detach data to float type_as",
    "pad": "pad constant_pad_nd",
    "interpolate": "interpolate upsample upsample_nearest upsample_nearest2d",
    "matmul": "matmul __matmul__ __rmatmul__ mm bmm",
    "attention": "scaled_dot_product_attention multi_head_attention_forward"
    " _native_multi_head_attention",
}
CONVOLUTIONS = tuple(name for name in _FORMS if name.startswith("conv"))
LAYERS = (*CONVOLUTIONS, "linear")
"""What layers with a weight call themselves."""
# what they make lies on the grid of what they read
PASSES_ON = frozenset(
    {
        "max_pool",
        "flatten",
        "reshape",
        "transpose",
        "split",
        "slice",
        "squeeze",
        "expand",
        "roll",
        "shuffle",
        "dropout",
        "contiguous",
        "pad",
        "interpolate",
    }
)
_Function = Callable[..., object]
_Arguments = tuple[object, ...]
_Keywords = Mapping[str, object]


def _collected() -> dict[_Function, tuple[str, str]]:
    """Return function -> name and form, for all forms that this version of PyTorch has."""
    # torch._C._nn: what functions of torch.nn.functional call, which torch.compile looks into
    homes: tuple[ModuleType | type, ...] = (
        *(torch, F, Tensor, operator, torch.special),
        vars(torch._C)["_nn"],
    )
    found: dict[_Function, tuple[str, str]] = {}
    for name, forms in _FORMS.items():
        for form in forms.split():
            for home in homes:
                given: object = getattr(home, form, None)
                if not callable(given):  # an attribute such as Tensor.T
                    given = getattr(given, "__get__", None)
                if callable(given):
                    found[given] = name, form
    return found


_NAMES = _collected()
_PYTHON = Tensor.unflatten.__module__  # of methods of tensors that are written in Python
_METHODS = {
    given.__name__: known
    for given, known in _NAMES.items()
    if isinstance(given, FunctionType) and given.__module__ == _PYTHON
}


def function_of(func: _Function, args: _Arguments, kwargs: _Keywords) -> str | None:
    """Return the name of a function that is called with these arguments; None where it has none.

    Functions of tensors that are not floating point have none; they count something, or index.
    """
    known = _known(func)
    if known is None:
        return None
    first = args[0] if args else None
    if "out" in kwargs or (isinstance(first, Tensor) and not first.is_floating_point()):
        return None
    name, form = known
    rule = _ONLY_IF.get(name)
    return name if rule is None else rule(form, args, kwargs)


def _known(func: _Function) -> tuple[str, str] | None:
    """Return name and form of a function.

    By its own name, where torch.compile, which does not find such methods among the keys of a
    dict, and then fails, asks for a method that is written in Python.
    """
    method = torch.compiler.is_compiling() and isinstance(func, FunctionType)
    if method and func.__module__ == _PYTHON:
        return _METHODS.get(func.__name__)
    return _NAMES.get(func)


def form_of(func: _Function) -> str:
    """Return how PyTorch spells a function that has a name here, such as relu6."""
    return _NAMES[func][1]


def reads_values(func: _Function) -> bool:
    """Tell whether a function reads what its tensors hold, not only of what shape they are."""
    form = getattr(func, "__name__", "")
    return not form.endswith("_like") and not form.startswith("new_")


def passes_on(name: str, facts: Mapping[str, object]) -> bool:
    """Tell whether a function leaves values on their grid, given the facts of its call."""
    if name == "pad":
        return facts.get("mode") != "constant" or facts.get("value") == 0
    if name == "interpolate":
        return str(facts.get("mode")).startswith("nearest")
    return name in PASSES_ON


def argument(
    args: _Arguments, kwargs: _Keywords, position: int, *names: str, default: object = None
) -> object:
    """Return what was given at a position, or by one of these names."""
    for name in names:
        if name in kwargs:
            return kwargs[name]
    return args[position] if len(args) > position else default


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def clip_range(
    form: str, args: _Arguments, kwargs: _Keywords
) -> tuple[float | None, float | None] | None:
    """Return the ends of a clip, None for one that is open; None where they are tensors."""
    if form == "relu6":
        return 0.0, 6.0
    low: object
    high: object
    if form.startswith("hardtanh"):
        low = argument(args, kwargs, 1, "min_val", default=-1.0)
        high = argument(args, kwargs, 2, "max_val", default=1.0)
    else:
        low = argument(args, kwargs, 1, "min")
        high = None if form.startswith("clamp_min") else argument(args, kwargs, 2, "max")
    ends = _number(low), _number(high)
    given = [end for end in (low, high) if end is not None]
    known = [end for end in ends if end is not None]
    return ends if len(given) == len(known) else None


def _clip(form: str, args: _Arguments, kwargs: _Keywords) -> str | None:
    ends = clip_range(form, args, kwargs)
    if ends is None or ends[0] is None:
        return None
    if ends[1] is None or ends[1] == float("inf"):
        return "relu" if ends[0] == 0 else None
    return "clip"


def _over_space(args: _Arguments, kwargs: _Keywords) -> bool:
    """Tell whether a reduction goes over all of [B, C, H, W] or [B, C, D, H, W] but B and C."""
    x = argument(args, kwargs, 0, "input", "self")
    dims = argument(args, kwargs, 1, "dim", "axis")
    if not isinstance(x, Tensor) or x.ndim not in (4, 5) or not isinstance(dims, Sequence):
        return False
    if kwargs.get("dtype") is not None:
        return False
    found = sorted(int(dim) % x.ndim for dim in dims if isinstance(dim, int))
    return found == [*range(2, x.ndim)]


def _avg_pool(form: str, args: _Arguments, kwargs: _Keywords) -> str | None:
    return None if form == "mean" and not _over_space(args, kwargs) else "avg_pool"


def _max_pool(form: str, args: _Arguments, kwargs: _Keywords) -> str | None:
    return None if form == "amax" and not _over_space(args, kwargs) else "max_pool"


def _not_scaled(name: str) -> "_Rule":
    """Return the rule of sums: with an alpha they are others."""
    return lambda form, args, kwargs: name if kwargs.get("alpha", 1) == 1 else None


def _div(form: str, args: _Arguments, kwargs: _Keywords) -> str | None:
    return "div" if kwargs.get("rounding_mode") is None else None


def _reshape(form: str, args: _Arguments, kwargs: _Keywords) -> str | None:
    given = argument(args, kwargs, 1, "dtype")
    return None if isinstance(given, torch.dtype) else "reshape"


def _slice(form: str, args: _Arguments, kwargs: _Keywords) -> str | None:
    index = args[1] if len(args) > 1 else None
    parts = index if isinstance(index, tuple) else (index,)
    return None if any(isinstance(part, Tensor | list) for part in parts) else "slice"


def _contiguous(form: str, args: _Arguments, kwargs: _Keywords) -> str | None:
    x = args[0] if args else None
    if not isinstance(x, Tensor):
        return None
    wanted = [torch.float32] if form == "float" else [*args[1:], *kwargs.values()]
    types = [w.dtype if isinstance(w, Tensor) else w for w in wanted]
    changes = any(isinstance(t, torch.dtype) and t != x.dtype for t in types)
    return None if changes else "contiguous"


_Rule = Callable[[str, _Arguments, _Keywords], str | None]
_ONLY_IF: dict[str, _Rule] = {
    "clip": _clip,
    "avg_pool": _avg_pool,
    "max_pool": _max_pool,
    "add": _not_scaled("add"),
    "sub": _not_scaled("sub"),
    "div": _div,
    "reshape": _reshape,
    "slice": _slice,
    "contiguous": _contiguous,
}
