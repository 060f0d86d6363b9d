"""Float model -> fake-quantized model, by layer type; no tracing."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from qtool.graph.inputs import Form, Inputs, device_of
from qtool.graph.recorder import Watched, record_first_forward, without_traces
from qtool.graph.recording import Recording
from qtool.graph.swap import ATTRIBUTE, keep_state, kept_state
from qtool.problems import Problem, did_you_mean, report
from qtool.quantizers.control import name_quantizers
from qtool.quantizers.finite import refuse_bad_numbers, refuse_bad_state, refuse_bad_values
from qtool.quantizers.layers import (
    QUANT_TYPES,
    QuantLayer,
    make_quant_layer,
    quant_layers,
    release_quant_layer,
)
from qtool.quantizers.places import quantize_relus
from qtool.quantizers.relu import QuantReLU
from qtool.settings.quantization import Quantization
from qtool.settings.section import check
from qtool.settings.user_estimators import load_by_absolute_paths

WATCHED = Watched(layers=(QuantLayer,), relus=(QuantReLU,))


@dataclass
class Prepared:
    """What `prepare` knows about the model it returns, kept on it as `model.qtool`.

    Attributes:
        left_float: name of every layer with weights that stays float -> why.
        recording: what the first forward pass told.
        form: of the model's inputs, fixed by the example; None where there was none.
    """

    left_float: dict[str, str] = field(default_factory=dict)
    recording: Recording = field(default_factory=Recording)
    form: Form | None = None

    @property
    def form_of_inputs(self) -> Form | None:
        """Return the form of the model's inputs: the example's, else that of the first pass."""
        if self.form is None and self.recording.example is not None:
            return Form.of_call(self.recording.example)
        return self.form


def prepare(
    model: nn.Module,
    quantization: Quantization | Mapping[str, object],
    example: object = None,
    *,
    search: bool = True,
) -> nn.Module:
    """Return a copy of `model` whose Conv2d and Linear layers are fake-quantized.

    Layers are swapped by their exact type: a subclass may compute something else and is left
    float. Weight scales are set from the weights; activation scales from `example` where it is
    given, else in place on the first forward pass.

    Args:
        model: any float model.
        quantization: the recipe's section of that name; a user's own estimator is named by the
            absolute path of its file, /folder/my.py:soft.
        example: one batch of inputs, on any device: a tensor [B, ...], a tuple of inputs by
            position or a dict of inputs by keyword. It fixes what is taken from the batches that
            `calibrate`, `reestimate_batch_norm` and `convert` are given.
        search: False takes max|w| where a range is a slow search (mse, ppq): enough for `plan`, or
            for a model whose state is about to be loaded.

    Raises:
        RecipeError: If the section is wrong, or an override matches no layer.
        ModelError: If a weight, a statistic or the example is not finite, or a given scale leaves
            nothing of its values; a ValueError, too.
        ValueError: If the model is prepared already, or there is no example where the places of
            quantizers are found by a forward pass.
    """
    if isinstance(quantization, dict):
        load_by_absolute_paths(quantization)
    settings = (
        quantization
        if isinstance(quantization, Quantization)
        else check(Quantization, quantization, "quantization")
    )
    if isinstance(getattr(model, ATTRIBUTE, None), Prepared):
        raise ValueError("this model is prepared already; prepare the float one")
    if found := pattern_problems(model, settings):
        raise report("quantization", found)
    refuse_bad_numbers(model)
    model = deepcopy(model)
    state, inputs = Prepared(), None
    if example is not None:
        refuse_bad_values(Inputs.of(example).tensors, "the example")
        state.form, inputs = Form.of(example), Inputs.of(example).to(device_of(model)).copied()
    sources = quantize_relus(model, settings, inputs)
    for name, module in list(model.named_modules()):
        if type(module) in QUANT_TYPES:
            weights, activations, where = settings.for_layer(name)
            if weights is None and activations is None:
                state.left_float[name] = f"{where} leaves weights and input float"
            else:
                make_quant_layer(module, weights, activations, sources.get(name))
        elif isinstance(module, tuple(QUANT_TYPES)):
            state.left_float[name] = f"{type(module).__name__} is a subclass that may differ"
        elif any(p.ndim > 1 for p in module.parameters(recurse=False)):
            state.left_float[name] = f"{type(module).__name__} is neither Conv2d nor Linear"
    keep_state(model, state)
    record_first_forward(model, WATCHED, _learn)
    if not search:
        for layer in quant_layers(model).values():
            if layer.weight_quantizer is not None:
                layer.weight_quantizer.fit_roughly(layer.weight)
    name_quantizers(model)
    model.register_load_state_dict_post_hook(refuse_bad_state)
    if inputs is not None:
        with without_traces(model):
            inputs.call(model)
    return model


def _learn(model: nn.Module, recording: Recording) -> None:
    """Keep what the first pass told; layers whose weights the model used by itself stay float."""
    state, bypassed = getattr(model, ATTRIBUTE), recording.bypassed
    if not isinstance(state, Prepared):  # converted meanwhile, with scales from a file
        return
    state.recording = recording
    for name, layer in quant_layers(model).items():
        if name in bypassed:
            release_quant_layer(layer)
            state.left_float[name] = "the model uses its weight without calling it"


def prepared_state(model: nn.Module) -> Prepared:
    """Return what `prepare` left on the model.

    Raises:
        ValueError: If the model did not come from `prepare`.
    """
    return kept_state(model, Prepared, "qtool.prepare")


def pattern_problems(model: nn.Module, settings: Quantization) -> list[Problem]:
    """Return the override patterns that match no layer of a float model."""
    names = [
        name for name, module in model.named_modules() if isinstance(module, tuple(QUANT_TYPES))
    ]
    return [
        (f"overrides.{index}.match", f"{pattern!r} matches no layer{did_you_mean(pattern, names)}")
        for index, override in enumerate(settings.overrides)
        for pattern in override.patterns
        if not any(fnmatchcase(name, pattern) for name in names)
    ]
