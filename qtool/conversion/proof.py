"""The proof that a fake-quantized model and its integer model say the same.

Codes lie on their grids; each layer gives what it gave before, on the inputs that it really gets;
and the whole model agrees by the rule that exports are judged by.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qtool.conversion.outputs import Outputs
from qtool.errors import ConversionError
from qtool.graph.copies import copy_of
from qtool.graph.inputs import Inputs
from qtool.integer.exact import exact_arithmetic
from qtool.integer.layers import IntegerLayer, integer_layers
from qtool.quantizers.finite import not_finite
from qtool.reports.results import Proof

TOLERANCE = 1e-4  # of a layer's largest output: float32 sums of some thousand products
MOST = 0.02  # likewise, where a model computes in bfloat16 inside
KEPT = 4  # batches that are run again where int32 biases may be what makes models disagree
OF_ROUNDING = 3.0  # times what float32 itself moves outputs by: integers are no further from it
LAST_BIT = 2.0**-24  # of float32, as a share of a value


@torch.no_grad()
def prove(
    reference: nn.Module,
    integer: nn.Module,
    batches: Iterable[Inputs],
    notes: list[str],
    with_rounded_biases: Callable[[], nn.Module] | None = None,
) -> Proof:
    """Check codes, each layer's output on the inputs it really gets, and the whole model's output.

    Layers are compared one by one on the same input: through a whole network a difference in the
    last bit can move a value across a rounding threshold, which says nothing about the layer. At
    few bits the steps of int32 biases do that, too: where the whole model disagrees, it is compared
    with one whose biases lie there already, and a note says what they change. In a deep network
    that has learnt little, float32's own rounding does: where the same model in float64 is as far
    away, a note says so.

    Args:
        reference: fake-quantized, in evaluation mode.
        integer: made of it.
        batches: are run through both, from the same random numbers.
        notes: takes what a user should know.
        with_rounded_biases: returns a copy of the reference, its biases in steps of int32.

    Raises:
        ConversionError: If they disagree, or an output is not finite; names the layer.
        ValueError: If there is nothing that the proof could look at.
    """
    layers = integer_layers(integer)
    refuse_codes_off_grid(layers)
    compared, outputs, kept = _Layers(reference, layers), Outputs(), list[Inputs]()
    with exact_arithmetic(reference):
        with compared:
            for batch in batches:
                if rows_of(batch):
                    _run_both(reference, integer, batch, outputs)
                    compared.refuse_left_over()
                    kept += [batch] if len(kept) < KEPT else []
        if not outputs.images:
            raise ValueError("convert needs images for its proof: its batches hold none")
        if layers and not compared.called:
            raise ConversionError(
                f"nothing was proven: the batches' forward passes call none of {_listed(layers)}"
            )
        step = max([_bias_step(layer) for layer in layers.values()], default=0.0)
        figures, why = outputs.judge(room=step / 2)
        if why and with_rounded_biases is not None:
            on_steps, again = with_rounded_biases(), Outputs()
            for batch in kept:
                _run_both(on_steps, integer, batch, again)
            if not again.judge(room=step / 2)[1]:
                notes.append(
                    f"biases in steps of int32 change the outputs ({why}); train or judge the "
                    f"model with such biases: call qtool.round_biases before it is judged"
                )
                why = ""
        if why and _is_rounding(figures, moved := _moved_by_rounding(reference, kept)):
            notes.append(
                f"values lie so near to rounding thresholds that float32 alone moves the outputs "
                f"of the fake-quantized model by {moved:.3g} in the median, and those of the "
                f"integer model differ from them by {figures['median_abs_difference']:.3g} ({why})"
            )
            why = ""
    if why:
        raise ConversionError(f"the integer model disagrees with the fake-quantized one: {why}")
    if missed := [name for name in layers if name not in compared.called]:
        notes.append(f"{_listed(missed)}: not called on the proof's batches, so not compared")
    if outputs.not_compared:
        notes.append(outputs.not_compared)
    if outputs.prove_little:
        notes.append(
            f"the outputs on the {outputs.images} images of the proof are all the same: that the "
            f"integer model gives them, too, proves little"
        )
    return Proof(
        images=outputs.images,
        layers_compared=len(compared.called),
        largest_layer_difference=max(compared.called.values(), default=0.0),
        sigma=figures["sigma"],
        top1_agreement=figures.get("top1_agreement"),
        clear_share=figures.get("clear_share"),
        clear_agreement=figures.get("clear_agreement"),
        max_abs_difference=figures["max_abs_difference"],
        median_abs_difference=figures["median_abs_difference"],
    )


def _run_both(reference: nn.Module, integer: nn.Module, batch: Inputs, outputs: "Outputs") -> None:
    """Run both models on the same inputs, and keep what they give."""
    expected, given = (_run(model, batch) for model in (reference, integer))
    outputs.take(rows_of(batch), expected, given)


def _moved_by_rounding(reference: nn.Module, batches: Iterable[Inputs]) -> float | None:
    """Return how far float32 moves a model's outputs from those that float64 gives, in the median.

    None where the model cannot compute in float64.
    """
    exact, outputs = copy_of(reference).double(), Outputs()
    try:
        for batch in batches:
            wide = batch.each(lambda x: x.double() if x.is_floating_point() else x)
            outputs.take(rows_of(batch), _run(exact, wide), _run(reference, batch))
    except RuntimeError:  # a part of it asks for float32
        return None
    return outputs.judge(room=0.0)[0]["median_abs_difference"]


def _is_rounding(figures: Mapping[str, float], moved: float | None) -> bool:
    """Tell whether a difference is no larger than what rounding alone makes of the model."""
    return moved is not None and 0 < figures["median_abs_difference"] <= OF_ROUNDING * moved


def refuse_codes_off_grid(layers: Mapping[str, IntegerLayer]) -> None:
    """Check that every weight code lies on its grid.

    Raises:
        ConversionError: Names the layer.
    """
    for name, layer in layers.items():
        grid = layer.spec.weight
        zeroed = layer.spec.rewritten and grid is not None and grid.kind == "mid_rise"
        if grid is not None and not zeroed and not grid.contains(layer.codes):
            raise ConversionError(f"{name}: a code lies outside its grid {grid}")


def rows_of(batch: Inputs) -> int:
    """Return the number of images in a batch: the length of its first tensor that has one."""
    return next((len(tensor) for tensor in batch.tensors if tensor.ndim), 1)


def _run(model: nn.Module, batch: Inputs) -> object:
    """Return a model's output on inputs of its own, from the random numbers as they are now."""
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        return batch.copied().call(model)


class _Layers:
    """Hooks that compare each layer with its integer form, as a context.

    Attributes:
        called: layer -> its largest difference, as a share of its largest output.
    """

    def __init__(self, reference: nn.Module, layers: Mapping[str, IntegerLayer]) -> None:
        self.reference, self.layers = reference, layers
        self.called: dict[str, float] = {}
        self._waiting: dict[str, tuple[Tensor, Tensor]] = {}  # input, and what the layer made of it
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> None:
        for name, layer in self.layers.items():
            last = layer.spec.batch_norm or name
            # each goes before the hooks that are there, and so the second before the first
            for module, hook in ((last, self._compare(name)), (name, self._compute(name))):
                found = self.reference.get_submodule(module)
                handle = found.register_forward_hook(hook, with_kwargs=True, prepend=True)
                self._handles.append(handle)

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _compute(self, name: str) -> Callable[..., None]:
        def hook(
            module: nn.Module,
            args: tuple[Tensor, ...],
            kwargs: dict[str, Tensor],
            output: Tensor,
        ) -> None:
            given = [*args, *kwargs.values()][0]
            if name in self._waiting:
                raise self._out_of_turn(name)
            self._waiting[name] = given, self.layers[name].forward(given)  # without hooks

        return hook

    def _compare(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, kwargs: object, expected: Tensor) -> None:
            if name not in self._waiting:
                raise self._out_of_turn(name)
            share = _difference(self.layers[name], expected, *self._waiting.pop(name))
            self.called[name] = max(share, self.called.get(name, 0.0))

        return hook

    def refuse_left_over(self) -> None:
        """Check, after a pass, that every layer was followed by the norm that is folded into it.

        Raises:
            ConversionError: Names the two.
        """
        for name in self._waiting:
            raise self._out_of_turn(name)

    def _out_of_turn(self, name: str) -> ConversionError:
        norm = self.layers[name].spec.batch_norm
        return ConversionError(
            f"{name}: {norm} is folded into it, and on the proof's batches the two are not called "
            f"one after the other each time, as on the first batch; every pass must call them alike"
        )


def _difference(layer: IntegerLayer, expected: Tensor, x: Tensor, given: Tensor) -> float:
    """Return the largest difference of two outputs, as a share of the largest value.

    Args:
        layer: that gave `given`.
        expected: what the fake-quantized layer gave.
        x: what both were given.
        given: what the integer layer gave.

    Raises:
        ConversionError: If they differ by more than arithmetic explains, or are not finite.
    """
    name = layer.spec.name
    if not expected.numel() and expected.shape == given.shape:
        return 0.0
    for what, tensor in (("fake-quantized", expected), ("integer", given)):
        if not bool(torch.isfinite(tensor).all()):
            if not bool(torch.isfinite(x).all()):
                raise ConversionError(f"{name}: its input {not_finite(x)}")
            raise ConversionError(f"{name}: the {what} layer's output {not_finite(tensor)}")
    if expected.shape != given.shape:
        raise ConversionError(
            f"{name}: the integer layer's output has the shape {list(given.shape)}, the "
            f"fake-quantized one's {list(expected.shape)}"
        )
    shorter = max(1.0, torch.finfo(expected.dtype).eps / torch.finfo(torch.float32).eps)
    expected, given = expected.double(), given.double()
    largest = float(expected.abs().max())
    difference = (given - expected).abs()
    room = torch.full_like(difference, min(TOLERANCE * shorter, MOST) * largest + 1e-12)
    if layer.spec.bias == "int32":
        # an int32 bias is off by at most half of its own step
        room = room + layer.channelwise(layer.bias_scale.double()) / 2
    if not bool((difference <= room).all()):
        # where large products cancel, float32 itself is off by more than a share of what is left
        room = room + _rounding_of_sums(layer, x) * shorter
    if not bool((difference <= room).all()):
        raise ConversionError(
            f"{name}: the integer layer's output differs by {float(difference.max()):.3g} from "
            f"the fake-quantized one, whose largest value is {largest:.3g}"
        )
    return float(difference.max()) / largest if largest else 0.0


def _rounding_of_sums(layer: IntegerLayer, x: Tensor) -> Tensor:
    """Return what rounding in float32 may do to a layer's sums of products, shaped as its output.

    Both factors of K products are rounded, and their sums on the way: sqrt(K) in the mean.
    """
    given, weight = layer.input_on_grid, layer.real_weight()
    x_hat = x.float() if given is None else given.values(given.codes(x.float()))
    bias = layer.real_bias()
    sums = layer.operate(x_hat.abs(), weight.abs(), None if bias is None else bias.abs())
    return sums.double() * (LAST_BIT * (8 + weight[0].numel() ** 0.5))


def _bias_step(layer: IntegerLayer) -> float:
    return float(layer.bias_scale.max()) if layer.spec.bias == "int32" else 0.0


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name or "the model itself" for name in names)
