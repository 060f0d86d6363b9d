"""What is known of a prepared model, and what of it inference runs.

A model is trained in one mode and deployed in the other. What `convert` decides by is seen in a
pass in evaluation mode: which layers are called, with which norms, and who reads their weights.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn

from qtool.graph.bypassed import read_past_modules
from qtool.graph.copies import copy_of
from qtool.graph.inputs import Form, Inputs
from qtool.graph.recorder import Watched, record_forward, without_traces
from qtool.graph.recording import Norm, Recording
from qtool.graph.sites.value_graph import ValueGraph
from qtool.graph.swap import Kept, kept_state
from qtool.limits import BYPASSED, LIMITS, UNCALLED
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import QuantLayer, quant_layers, release_quant_layer
from qtool.quantizers.places.attach import stand_again
from qtool.quantizers.places.placement import Placement
from qtool.quantizers.relu import QuantReLU, quant_relus
from qtool.quantizers.steps import Steps
from qtool.settings.quantization import Quantization

WATCHED = Watched(layers=(QuantLayer,), relus=(QuantReLU,))


@dataclass
class Prepared(Kept):
    """What `prepare` knows about the model it returns, kept on it as `model.qtool`.

    Attributes:
        left_float: name of every layer with weights that stays float -> why.
        recording: what the first forward pass told.
        form: of the model's inputs, fixed by the example; None where there was none.
        settings: what was to be quantized, and how.
        steps: tells which passes begin a training step.
        placement: what was decided for its values; empty where quantizers stand at layers or ReLUs.
        graph: of those values.
    """

    maker: ClassVar[str] = "qtool.prepare"
    model: ClassVar[str] = "a prepared model"

    left_float: dict[str, str] = field(default_factory=dict)
    recording: Recording = field(default_factory=Recording)
    form: Form | None = None
    settings: Quantization = field(default_factory=Quantization)
    steps: Steps = field(default_factory=Steps)
    placement: Placement = field(default_factory=Placement)
    graph: ValueGraph = field(default_factory=ValueGraph)

    @property
    def form_of_inputs(self) -> Form | None:
        """Return the form of the model's inputs: the example's, else that of the first pass."""
        if self.form is None and self.recording.example is not None:
            return Form.of_call(self.recording.example)
        return self.form

    @property
    def not_folded(self) -> dict[str, str]:
        """Return every norm that stays beside the layers -> why, as far as passes told."""
        norms = [norm for norm in self.recording.norms if norm.reason]
        return {norm.name: LIMITS[norm.reason].text(**norm.words) for norm in norms}


def prepared_state(model: nn.Module) -> Prepared:
    """Return what `prepare` left on the model.

    Raises:
        ValueError: If the model did not come from `prepare`.
    """
    return kept_state(model, Prepared)


@torch.no_grad()
def see_deployed(model: nn.Module, inputs: Inputs) -> Prepared:
    """Return what is known of a prepared model once a pass in evaluation mode was seen.

    Layers that inference does not call, or whose weights it reads past them, become float layers;
    calls of ReLUs that it does not make lose their quantizers.

    Args:
        model: a copy of a prepared model, in evaluation mode.
        inputs: of the pass; no range is set from them.
    """
    state = prepared_state(model)
    quantizers = [m for m in model.modules() if isinstance(m, FakeQuantize)]
    ready = [quantizer.ready for quantizer in quantizers]
    told = record_forward(model, WATCHED, inputs.copied())
    past = read_past_modules(model, inputs.copied())
    for quantizer, was in zip(quantizers, ready, strict=True):
        quantizer.ready = was
    left_float, released = dict(state.left_float), set[str]()
    uncalled = _uncalled(model, inputs, told)
    for name, layer in quant_layers(model).items():
        if name in past or name in uncalled:
            left_float[name] = (BYPASSED if name in past else UNCALLED).text()
            release_quant_layer(layer)
            released.add(name)
    if released:
        stand_again(model)
    for name, relu in quant_relus(model).items():
        for call in range(told.calls_of("relu")[name], len(relu.quantizers)):
            relu.quantizers[call] = nn.Identity()
    norms = [_after(norm, past, released) for norm in told.norms]
    recording = replace(told, norms=tuple(norms), example=state.recording.example or told.example)
    return replace(state, left_float=left_float, recording=recording)


def _uncalled(model: nn.Module, inputs: Inputs, told: Recording) -> set[str]:
    """Return the layers that training calls on the same inputs and evaluation does not.

    Of those that neither calls, only such as no data has set a range for: what is called may depend
    on the inputs.
    """
    left = {name: layer for name, layer in quant_layers(model).items() if not told.calls[name]}
    if not left:
        return set()
    twin = copy_of(model).train()
    try:
        with without_traces(twin):
            called = set(record_forward(twin, WATCHED, inputs.copied()).calls)
    except Exception:  # whatever a model raises in training mode, for want of labels perhaps
        called = set()
    unset = {n for n, one in left.items() if (q := one.quantizer_of_input) and not q.ready}
    return unset | (called & left.keys())


def _after(norm: Norm, past: Collection[str], released: Collection[str]) -> Norm:
    """Return what is known of a norm that may be read past it, or whose layer may be released."""
    if norm.reason or not (norm.name in past or norm.layer in released):
        return norm
    return replace(norm, reason="NORM_READ" if norm.name in past else "FLOAT_LAYER")
