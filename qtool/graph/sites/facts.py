"""What the arguments of a call say, beside the tensors that it reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from qtool.graph.sites.functions import argument, clip_range, form_of

Facts = dict[str, object]
Pair = tuple[int, int]


def facts_of(
    name: str,
    func: Callable[..., object],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    made: Sequence[Tensor],
) -> Facts:
    """Return the facts of a call, see `qtool.graph.sites.value_graph.Operation`.

    Args:
        name: of the function.
        func: as it was called.
        args: what by position.
        kwargs: what by keyword.
        made: what it returned.
    """
    if name == "clip":
        ends = clip_range(form_of(func), args, kwargs)
        return {} if ends is None else {"low": ends[0], "high": ends[1]}
    if name == "avg_pool":
        return _of_pooling(form_of(func), args, kwargs, made[0])
    if name == "cat":
        dim = argument(args, kwargs, 1, "dim", "axis", default=0)
        return {"dim": dim % made[0].ndim} if isinstance(dim, int) else {}
    if name == "pad":
        mode = argument(args, kwargs, 2, "mode", default="constant")
        return {"mode": mode, "value": argument(args, kwargs, 3, "value") or 0.0}
    if name == "interpolate":
        return {"mode": argument(args, kwargs, 3, "mode", default="nearest")}
    if name in ("add", "sub", "mul", "div"):
        numbers = [n for n in operands(args, kwargs) if isinstance(n, int | float)]
        return {"value": float(numbers[0])} if numbers else {}
    if name == "other":
        return {"name": getattr(func, "__name__", type(func).__name__)}
    return {}


def operands(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Iterator[object]:
    """Yield both operands of an operator."""
    yield argument(args, kwargs, 0, "input", "self")
    yield argument(args, kwargs, 1, "other")


def _of_pooling(
    form: str, args: tuple[object, ...], kwargs: Mapping[str, object], made: Tensor
) -> Facts:
    """Return the facts of an average pooling.

    kernel, stride, padding: (height, width); absent where windows differ in size. whole: one window
        is the image, of whatever size. same: each window is one element. output: the size that an
        adaptive pooling makes of images of any size. divisor: what sums are divided by, where that
        is not the number of elements in a window; None where it differs at the borders, which
        padding does.
    """
    x = argument(args, kwargs, 0, "input", "self")
    assert isinstance(x, Tensor)
    image = int(x.shape[-2]), int(x.shape[-1])
    if form == "mean":
        size: Pair | None = (1, 1)
        return _of_windows(image, image, (0, 0)) | {"output": size, "whole": True}
    if form == "adaptive_avg_pool2d":
        size = int(made.shape[-2]), int(made.shape[-1])
        if any(whole % part for whole, part in zip(image, size, strict=True)):
            return {"output": size}
        kernel = image[0] // size[0], image[1] // size[1]
        whole: Facts = {"whole": True} if size == (1, 1) else {}
        return _of_windows(kernel, kernel, (0, 0)) | {"output": size} | whole
    kernel = _pair(argument(args, kwargs, 1, "kernel_size"))
    stride = _pair(argument(args, kwargs, 2, "stride")) or kernel
    padding = _pair(argument(args, kwargs, 3, "padding", default=0))
    assert kernel is not None
    assert stride is not None
    assert padding is not None
    found = _of_windows(kernel, stride, padding)
    divisor = argument(args, kwargs, 6, "divisor_override")
    ceil = bool(argument(args, kwargs, 4, "ceil_mode", default=False))
    with_padding = bool(argument(args, kwargs, 5, "count_include_pad", default=True))
    over = ceil and any(
        (length + 2 * pad - part) % step
        for length, pad, part, step in zip(image, padding, kernel, stride, strict=True)
    )
    if divisor is not None:
        found["divisor"] = divisor
    elif over or (any(padding) and not with_padding):
        found["divisor"] = None
    return found


def _of_windows(kernel: Pair, stride: Pair, padding: Pair) -> Facts:
    found: Facts = {"kernel": kernel, "stride": stride, "padding": padding}
    if kernel == stride == (1, 1) and padding == (0, 0):
        found["same"] = True
    return found


def _pair(size: object) -> Pair | None:
    """Return height and width of a size, which may be one number for both; None where none is."""
    numbers = [n for n in (size if isinstance(size, Sequence) else [size]) if isinstance(n, int)]
    return (numbers[0], numbers[-1]) if numbers else None
