"""The proof that a fake-quantized model and its integer model say the same.

Codes lie on their grids; each layer, and what stands at each site, gives what it gave before, on
the inputs that it really gets; and the whole model agrees by the rule that exports are judged by.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from qtool.conversion.compared import Compared
from qtool.conversion.outputs import Outputs
from qtool.conversion.thresholds import Led, nudged
from qtool.errors import ConversionError
from qtool.graph.copies import copy_of
from qtool.graph.inputs import Inputs
from qtool.integer.exact import exact_arithmetic
from qtool.integer.layers import IntegerLayer, integer_layers
from qtool.reports.results import Proof

KEPT = 4  # batches that are run again where int32 biases may be what makes models disagree
OF_ROUNDING = 3.0  # times what float32 itself moves outputs by: integers are no further from it
OF_BIASES = (
    "biases in steps of int32 change the outputs ({why}); train or judge the model with such "
    "biases: call qtool.round_biases before it is judged"
)
NUDGES = 3  # times that values are moved by what float32 may: one may meet no threshold early on


@torch.no_grad()
def prove(
    reference: nn.Module,
    integer: nn.Module,
    batches: Iterable[Inputs],
    notes: list[str],
    with_rounded_biases: Callable[[], nn.Module] | None = None,
) -> Proof:
    """Check codes, the output of each layer and site on its real inputs, and the whole model's.

    Layers are compared one by one on the same input: through a whole network a difference in the
    last bit can move a value across a rounding threshold, which says nothing about the layer. At
    few bits the steps of int32 biases do that, too: where the whole model disagrees, it is compared
    with one whose biases lie there already, and a note says what they change. In a deep network
    that has learnt little, float32's own rounding does: where the same model in float64 is as far
    away, a note says so. So does one where that moves as far with all that it rounds moved by
    float32's rounding (its biases in steps of int32), and the integer model gives its outputs when
    it is led along its values, site by site.

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
    compared, outputs, kept = Compared(reference, integer), Outputs(), list[Inputs]()
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
        on_steps, again = None, Outputs()
        if why and with_rounded_biases is not None:
            on_steps = with_rounded_biases()
            for batch in kept:
                _run_both(on_steps, integer, batch, again)
            if not again.judge(room=step / 2)[1]:
                notes.append(OF_BIASES.format(why=why))
                why = ""
        if why and _is_rounding(figures, moved := _moved_by_rounding(reference, kept)):
            notes.append(
                f"values lie so near to rounding thresholds that float32 alone moves the outputs "
                f"of the fake-quantized model by {moved:.3g} in the median, and those of the "
                f"integer model differ from them by {figures['median_abs_difference']:.3g} ({why})"
            )
            why = ""
        if why:
            stands = (reference, outputs) if on_steps is None else (on_steps, again)
            if said := _of_thresholds(stands[0], integer, kept, stands[1], step / 2):
                if on_steps is not None and not again.expects_as(outputs):
                    notes.append(OF_BIASES.format(why=why))
                    said += "; that is with biases in steps of int32"
                notes.append(f"values lie so near to rounding thresholds that {said}")
                why = ""
    if why:
        raise ConversionError(f"the integer model disagrees with the fake-quantized one: {why}")
    unseen = [site for site in compared.rounded if site not in compared.off]
    if missed := [name for name in layers if name not in compared.called] + unseen:
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
        sites_compared=len(compared.off),
        largest_share_off=max(compared.off.values(), default=0.0),
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


def _moved_by_nudges(reference: nn.Module, batches: list[Inputs]) -> float:
    """Return how far a model's outputs move where all that it rounds does, in the median.

    By float32's rounding, and of several times the one that moves them most.
    """
    found = [0.0]
    for seed in range(NUDGES):
        outputs = Outputs()
        for batch in batches:
            expected = _run(reference, batch)
            with nudged(reference, seed):
                outputs.take(rows_of(batch), expected, _run(reference, batch))
        found.append(outputs.judge(room=0.0)[0]["median_abs_difference"])
    return max(found)


def _of_thresholds(
    reference: nn.Module, integer: nn.Module, batches: list[Inputs], outputs: Outputs, room: float
) -> str:
    """Return a note where a disagreement is that of values at rounding thresholds, else "".

    It is where the integer model agrees once it is led along the other's values: in outputs, by the
    rule that whole models are judged by, and at each site in all but the values that the comparison
    of sites finds, too; and where the fake-quantized model moves by itself as far.

    Args:
        reference: fake-quantized, its biases in steps of int32 where that can be.
        integer: model that disagrees with it.
        batches: inputs of both.
        outputs: of both on these.
        room: as they are judged.

    Raises:
        ConversionError: If a layer or site disagrees.
    """
    compared, led, given = Compared(reference, integer), Led(), Outputs()
    if not compared.rounded:
        return ""
    for batch in batches:
        with led.recording(reference), compared:
            expected = _run(reference, batch)
        with led.leading(integer):
            given.take(rows_of(batch), expected, _run(integer, batch))
    if led.fault(compared.off) or given.judge(room=room)[1]:
        return ""
    figures, why = outputs.judge(room=room)
    moved = _moved_by_nudges(reference, batches)
    if not _is_rounding(figures, moved):
        return ""
    return (
        f"the outputs of the fake-quantized model move by {moved:.3g} in the median where all that "
        f"it rounds moves by what float32 may, and those of the integer model differ from them by "
        f"{figures['median_abs_difference']:.3g} ({why}); led along its values site by site, the "
        f"integer model gives its outputs"
    )


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


def _bias_step(layer: IntegerLayer) -> float:
    return float(layer.bias_scale.max()) if layer.spec.bias == "int32" else 0.0


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name or "the model itself" for name in names)
