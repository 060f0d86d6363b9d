"""What a conversion cost: accuracy before and after, bytes, and what became of each layer."""

from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor, nn

from qtool.evaluation import evaluate, logits_of
from qtool.graph.own_norm import as_known
from qtool.integer.converted import converted_state
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.health import health
from qtool.reports.layers import Layer, Site
from qtool.reports.results import Conversion, NoSaturation

Batches = Iterable[tuple[Tensor, Tensor]]


def conversion_report(
    model: nn.Module,
    integer: nn.Module,
    batches: Callable[[], Batches],
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    path: Path,
    float_accuracy: float | None = None,
    avoids_saturation: bool = False,
) -> Conversion:
    """Judge the fake-quantized and the integer model on the same batches; count bytes.

    Args:
        model: from `prepare`.
        integer: what `convert` made of it.
        batches: returns the validation set anew, images [B, C, H, W] and labels [B].
        loss: of logits and labels.
        path: where the integer model goes.
        float_accuracy: of the float network, where nothing was trained.
        avoids_saturation: channels that could saturate were rounded anew.
    """
    expected, labels = logits_of(model.eval(), batches())
    given, _ = logits_of(integer, batches())
    before, after = (
        evaluate(lambda x: x, [(logits, labels)], loss) for logits in (expected, given)
    )
    state = converted_state(integer)
    bits = sum(spec.weights * (spec.weight_bits or 32) for spec in state.layers)
    packed = {f"{spec.name}.codes" for spec in state.layers}
    others = [t for name, t in integer.state_dict().items() if name not in packed]
    learned = {p for m in model.modules() if isinstance(m, FakeQuantize) for p in m.parameters()}
    own = [parameter for parameter in model.parameters() if parameter not in learned]
    avoided = NoSaturation(
        channels={spec.name: spec.fewer_steps for spec in state.layers if spec.fewer_steps},
        validation_accuracy_before=before.accuracy,
        validation_accuracy_after=after.accuracy,
    )
    made = Conversion(
        float_bytes=4 * sum(p.numel() for p in own),
        integer_bytes=-(-bits // 8) + sum(t.numel() * t.element_size() for t in others),
        validation_accuracy_before=before.accuracy,
        validation_accuracy_after=after.accuracy,
        validation_images=after.images,
        max_abs_difference=float((expected - given).abs().max()),
        layers=[_as_known(Layer(**spec.as_dict())) for spec in state.layers],
        left_float=state.left_float,
        notes=state.notes,
        integer_model=str(path),
        validation_accuracy_float=float_accuracy,
        proof=state.proof,
        not_folded={as_known(name): why for name, why in state.not_folded.items()},
        health=health(model, next(iter(batches()))[0]),
        sites=[
            Site(
                site=str(spec.site),
                kind=spec.kind,
                bits=spec.output.bits,
                grid=spec.output.grid,
                inputs=[given.site for given in spec.inputs],
                norm=as_known(spec.norm),
            )
            for spec in state.sites
            if spec.output is not None
        ],
        float_sites=state.float_sites,
    )
    return made.model_copy(update={"no_saturation": avoided}) if avoids_saturation else made


def _as_known(layer: Layer) -> Layer:
    """Return a layer whose batch norm is named as the network has it."""
    norm = layer.batch_norm
    return layer.model_copy(update={"batch_norm": None if norm is None else as_known(norm)})
