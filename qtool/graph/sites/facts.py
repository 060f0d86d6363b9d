"""What the arguments of a call say, beside the tensors that it reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from qtool.graph.sites.functions import argument, clip_range, form_of

Facts = dict[str, object]
Sizes = tuple[int, ...]  # one for each dimension of an image, as (height, width)


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

    kernel, stride, padding: of each dimension, as (height, width); absent where windows differ in
        size. whole: one window is the image, of whatever size. same: each window is one element.
        output: the size that an adaptive pooling makes of images of any size. divisor: what sums
        are divided by, where that is not the number of elements in a window; None where it differs
        at the borders, which padding does.
    """
    x = argument(args, kwargs, 0, "input", "self")
    assert isinstance(x, Tensor)
    count = x.ndim - 2 if form == "mean" else int(form[-2])  # avg_pool2d
    image, none, one = tuple(map(int, x.shape[-count:])), (0,) * count, (1,) * count
    if form == "mean":
        return _of_windows(image, image, none) | {"output": one, "whole": True}
    if form.startswith("adaptive"):
        size = tuple(map(int, made.shape[-count:]))
        if any(whole % part for whole, part in zip(image, size, strict=True)):
            return {"output": size}
        kernel = tuple(whole // part for whole, part in zip(image, size, strict=True))
        whole: Facts = {"whole": True} if size == one else {}
        return _of_windows(kernel, kernel, none) | {"output": size} | whole
    kernel = _sizes(argument(args, kwargs, 1, "kernel_size"), count)
    stride = _sizes(argument(args, kwargs, 2, "stride"), count) or kernel
    padding = _sizes(argument(args, kwargs, 3, "padding", default=0), count)
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


def _of_windows(kernel: Sizes, stride: Sizes, padding: Sizes) -> Facts:
    found: Facts = {"kernel": kernel, "stride": stride, "padding": padding}
    if set(kernel + stride) == {1} and not any(padding):
        found["same"] = True
    return found


def _sizes(size: object, count: int) -> Sizes:
    """Return a size of each dimension, which may be one number for all; () where none is given."""
    numbers = [n for n in (size if isinstance(size, Sequence) else [size]) if isinstance(n, int)]
    return tuple(numbers * count if len(numbers) == 1 else numbers)
