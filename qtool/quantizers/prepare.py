"""Float model -> fake-quantized model, by layer type; no tracing."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import nn

from qtool.graph.attention import APART, PACKED, LayeredAttention, attentions
from qtool.graph.copies import copy_of
from qtool.graph.inputs import Form, Inputs, device_of
from qtool.graph.recorder import record_first_forward, without_traces
from qtool.graph.recording import Recording
from qtool.graph.swap import ATTRIBUTE, keep_state
from qtool.limits import (
    BY_FUNCTIONS,
    BYPASSED,
    CHOSEN,
    COMPUTED_WEIGHT,
    CONSTANT_INPUT,
    NEITHER,
    OTHER_ATTENTION,
    SUBCLASS,
)
from qtool.numerics.ranges import TRAINED, UNTRAINED
from qtool.problems import Problem, did_you_mean, report, shown
from qtool.quantizers.attention import (
    call_bypassed,
    call_own_norms,
    layer_attentions,
    release_what_was_float,
)
from qtool.quantizers.control import name_quantizers
from qtool.quantizers.door import entry
from qtool.quantizers.door.deployed import WATCHED, Prepared, prepared_state, see_deployed
from qtool.quantizers.door.finite import refuse_bad_numbers, refuse_bad_state, refuse_bad_values
from qtool.quantizers.door.modes import (
    ROWS,
    bypassed,
    computed_weights,
    fed_constants,
    see_both_modes,
    set_missing_ranges,
)
from qtool.quantizers.layers import (
    QUANT_TYPES,
    make_quant_layer,
    plain_type,
    quant_layers,
    release_quant_layer,
)
from qtool.quantizers.places.attach import place_quantizers, stand_again
from qtool.quantizers.places.of_state import refuse_other_place
from qtool.quantizers.places.relu_outputs import quantize_relus
from qtool.quantizers.saturation import avoid_saturation
from qtool.quantizers.sites import settle_what_waits
from qtool.settings.quantization import Quantization, of_sites
from qtool.settings.section import check
from qtool.settings.user_estimators import load_by_absolute_paths

UNCHOSEN = "widths are chosen by qtool train and qtool convert RECIPE; say them in overrides here"

__all__ = ["Prepared", "pattern_problems", "prepare", "prepared_state"]


def prepare(
    model: nn.Module,
    quantization: Quantization | Mapping[str, object],
    example: object = None,
    *,
    search: bool = True,
    trains: bool = True,
) -> nn.Module:
    """Return a copy of `model` whose convolutions and linear layers are fake-quantized.

    A subclass that computes something else, or may do so, is left float, and so is a layer whose
    weight the model uses past it, in evaluation or in training mode. Weight scales are set from the
    weights; activation scales from `example` where it is given, else in place on the first forward
    pass.

    Args:
        model: any float model.
        quantization: the recipe's section of that name; a user's own estimator is named by the
            absolute path of its file, /folder/my.py:soft.
        example: one batch of inputs, on any device: a tensor [B, ...], a tuple of inputs by
            position or a dict of inputs by keyword. It fixes what is taken from the batches that
            `calibrate`, `reestimate_batch_norm` and `convert` are given.
        search: False takes max|w| where a range is a slow search (mse, ppq): enough for `plan`, or
            for a model whose state is about to be loaded.
        trains: whether the model is to be trained, so that a range that is not said is learned, or
            only to be calibrated.

    Raises:
        RecipeError: If the section is wrong, or an override matches no layer.
        ModelError: If the model or the example is refused, as README of this room lists it, or a
            given scale leaves nothing of its values; a ValueError, too.
        ValueError: If there is no example where the places of quantizers are found by a forward
            pass.
    """
    if isinstance(quantization, dict):
        load_by_absolute_paths(quantization)
    settings = (
        quantization
        if isinstance(quantization, Quantization)
        else check(Quantization, quantization, "quantization")
    )
    if settings.budget is not None:
        raise report("quantization", [("budget", UNCHOSEN)])
    inputs = None if example is None else Inputs.of(example)
    given, settings = settings, settings.with_range(TRAINED if trains else UNTRAINED)
    entry.check_model(model, settings, inputs)
    if found := pattern_problems(model, settings):
        raise report("quantization", found)
    refuse_bad_numbers(model)
    model, state = entry.copied(model), Prepared(settings=settings)
    if inputs is not None:
        refuse_bad_values(inputs.tensors, "the example")
        entry.check_example(inputs, settings)
        state.form, inputs = Form.of(example), inputs.to(device_of(model)).copied()
        model = entry.materialized(model, inputs)
    if layer_attentions(model, inputs):
        _check_new_layers(model, settings)
    computed = computed_weights(model, inputs)
    entry.check_layers(model, settings)
    at_values = settings.at_every_value
    if at_values and inputs is None:
        raise ValueError(
            "place: every_value needs an example, to see which values there are; "
            "without one only place: layer_inputs can be prepared"
        )
    if inputs is not None:
        call_own_norms(model, inputs)
    seen = [] if inputs is None else see_both_modes(model, inputs, values=at_values)
    past = bypassed(seen)
    if inputs is not None and call_bypassed(model, past, inputs):
        seen = see_both_modes(model, inputs, values=at_values)
        past = bypassed(seen)
    constant = set() if inputs is None else fed_constants(model, seen, inputs)
    sources = quantize_relus(model, settings, inputs, seen)
    placing = place_quantizers(model, settings, seen, given)
    sources |= placing.sources
    for name, module in list(model.named_modules()):
        if plain_type(module) and name in past:
            state.left_float[name] = BYPASSED.text()
        elif name in constant:
            state.left_float[name] = CONSTANT_INPUT.text()
        elif entry.may_be_quantized(module):
            weights, activations, where = settings.for_layer(name)
            if weights is None and activations is None:
                state.left_float[name] = CHOSEN.text(where=where)
            else:
                make_quant_layer(module, weights, activations, sources.get(name))
        elif why := why_not(module, computed.get(name, "")):
            state.left_float[name] = why
    entry.refuse_if_nothing_is_quantized(model, settings, state.left_float)
    placing.attach(model)
    state.placement, state.graph = placing.placement, placing.graph
    keep_state(model, state)
    avoid_saturation(model)
    state.steps.watch(model)
    record_first_forward(model, WATCHED, _learn)
    if not search:
        for layer in quant_layers(model).values():
            if layer.weight_quantizer is not None:
                layer.weight_quantizer.fit_roughly(layer.whole_weight)
    name_quantizers(model)
    model.register_load_state_dict_pre_hook(refuse_other_place)
    model.register_load_state_dict_pre_hook(release_what_was_float)
    model.register_load_state_dict_post_hook(refuse_bad_state)
    if inputs is not None:
        with without_traces(model), entry.named_failures():
            output = inputs.call(model)
        entry.check_output(output)
        if model.training and seen:
            set_missing_ranges(model, inputs)
        settle_what_waits(model)
        if model.training and seen:
            told = see_deployed(copy_of(model).eval(), inputs.first(ROWS)).recording
            state.recording = replace(told, example=state.recording.example)
    return model


def _check_new_layers(model: nn.Module, settings: Quantization) -> None:
    """Check layers that attentions have got, and patterns that may have named others of them."""
    entry.check_layers(model, settings)
    if found := pattern_problems(model, settings):
        raise report("quantization", found)


def why_not(module: nn.Module, function: str = "") -> str:
    """Return why a module's weights stay float, "" where it has none.

    Args:
        module: that is not quantized.
        function: which it gives a weight to that it has computed; "" where it is not seen to do so.
    """
    kind = entry.kind_of(module)
    if isinstance(module, LayeredAttention):
        return ""  # its weights are those of its layers
    if isinstance(module, nn.MultiheadAttention):
        return OTHER_ATTENTION.text(type=kind.__name__)
    if isinstance(module, tuple(QUANT_TYPES)) and function:
        return COMPUTED_WEIGHT.text(type=kind.__name__, function=function)
    if isinstance(module, tuple(QUANT_TYPES)):
        return SUBCLASS.text(type=kind.__name__)
    own = [name for name, tensor in entry.weights_of(module).items() if tensor.ndim > 1]
    if not own:
        return ""
    if kind.__module__.startswith("torch.nn."):
        return NEITHER.text(type=kind.__name__)
    return BY_FUNCTIONS.text(type=kind.__name__, names=", ".join(own))


def _learn(model: nn.Module, recording: Recording) -> None:
    """Keep what the first pass told; layers whose weights the model used by itself stay float."""
    state = getattr(model, ATTRIBUTE)
    if not isinstance(state, Prepared):  # converted meanwhile, with scales from a file
        return
    state.recording = recording
    for name, layer in quant_layers(model).items():
        if name in recording.bypassed:
            release_quant_layer(layer)
            state.left_float[name] = BYPASSED.text()
    stand_again(model)
    entry.refuse_if_nothing_is_quantized(model, state.settings, state.left_float)


def pattern_problems(model: nn.Module, settings: Quantization) -> list[Problem]:
    """Return the override patterns that match no layer of a float model.

    Patterns of sites are left to who has seen the calls of the model, `places.wanted`, but where
    there are no sites.
    """
    names = [
        name for name, module in model.named_modules() if isinstance(module, tuple(QUANT_TYPES))
    ]
    names += [f"{name}.{part}" for name in attentions(model) for part in (*PACKED, *APART)]
    found: list[Problem] = []
    for index, override in enumerate(settings.overrides):
        for pattern in override.patterns:
            why = f"{shown(pattern)} matches no layer{did_you_mean(pattern, names)}"
            if of_sites(pattern):
                why = f"{shown(pattern)} is a site; sites are there with place: every_value alone"
                if settings.at_every_value:
                    continue
            elif any(fnmatchcase(name, pattern) for name in names):
                continue
            found.append((f"overrides.{index}.match", why))
    return found
