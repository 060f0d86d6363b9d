"""The door of `prepare`: what is refused there, in which words, and what comes out of the rest."""

import copy
import threading
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import qtool
from qtool import limits
from qtool.errors import ModelError
from qtool.integer.converted import converted_state
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.plan import plan
from qtool.quantizers.prepare import prepared_state

BOTH = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "layer_inputs"}}
IMAGES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
FLOAT = {"weights": None, "activations": None}


def net(wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer) -> nn.Sequential:
    """Return a small network, one convolution of which is wrapped: "2"."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        wrap(nn.Conv2d(4, 4, 3)),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def pruned(layer: nn.Module, tensor: str = "weight") -> nn.Module:
    prune.l1_unstructured(layer, tensor, 0.5)
    return layer


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrized(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def made_by_a_hook(layer: nn.Module) -> nn.Module:
    """A weight that a hook of one's own computes from another parameter."""
    layer.register_parameter("raw", nn.Parameter(layer.get_parameter("weight").detach().clone()))
    del layer.weight

    def compute(module: Any, args: object) -> None:
        module.weight = torch.tanh(module.raw)

    compute(layer, ())
    layer.register_forward_pre_hook(compute)
    return layer


def far(given: Tensor, expected: Tensor) -> float:
    """Return the largest difference in standard deviations of what is expected."""
    return float((given - expected).detach().abs().max() / expected.detach().std())


def train(model: nn.Module) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05)
    for _ in range(2):
        optimizer.zero_grad()
        model.train()(IMAGES).square().sum().backward()
        optimizer.step()


MADE_ANEW: dict[str, tuple[Callable[[nn.Module], nn.Module], str]] = {
    "older weight_norm": (nn.utils.weight_norm, r"remove_weight_norm\(layer, 'weight'\)"),
    "older spectral_norm": (nn.utils.spectral_norm, r"remove_spectral_norm\(layer, 'weight'\)"),
    "pruned": (pruned, r"prune\.remove\(layer, 'weight'\)"),
    "pruned twice": (lambda layer: pruned(pruned(layer)), r"prune\.remove\(layer, 'weight'\)"),
    "pruned bias": (lambda layer: pruned(layer, "bias"), r"prune\.remove\(layer, 'bias'\)"),
    "weight_norm": (parametrizations.weight_norm, r"remove_parametrizations\(layer, 'weight'\)"),
    "spectral_norm": (parametrizations.spectral_norm, r"remove_parametrizations\(layer, 'weight'"),
    "parametrized": (parametrized, r"parametrize\.remove_parametrizations\(layer, 'weight'\)"),
    "hook of one's own": (made_by_a_hook, r"layer\.weight = torch\.nn\.Parameter"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("kind", MADE_ANEW)
def test_a_weight_that_something_makes_is_refused_or_may_stay_float(kind: str) -> None:
    wrap, remove = MADE_ANEW[kind]
    with pytest.raises(ModelError, match=rf"^2: its (weight|bias) is made anew .* call .*{remove}"):
        qtool.prepare(net(wrap), BOTH, IMAGES)
    quantization = BOTH | {"overrides": [{"match": "2", **FLOAT}]}
    model = qtool.prepare(net(wrap), quantization, IMAGES)
    assert prepared_state(model).left_float == {"2": "overrides.0 leaves weights and input float"}
    assert [row.shape for row in plan(model) if row.name == "2"] == [[4, 4, 3, 3]]
    assert list(quant_layers(model)) == ["0", "7"]
    train(model)
    integer = qtool.convert(model.eval())  # no pass between the last step and this
    with torch.no_grad():
        given, expected = integer(IMAGES), model(IMAGES)
    assert far(given, expected) < 0.2


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_the_refusal_says_mends_it() -> None:
    model = net(pruned)
    prune.remove(model[2], "weight")
    prepared = qtool.prepare(model, BOTH, IMAGES)
    assert list(quant_layers(prepared)) == ["0", "2", "7"]
    model = net(nn.utils.weight_norm)
    nn.utils.remove_weight_norm(model[2], "weight")
    qtool.prepare(model, BOTH, IMAGES)


def test_a_norm_whose_weight_something_makes_is_refused() -> None:
    model = net()
    pruned(model.get_submodule("3"))
    with pytest.raises(ModelError, match=r"^3: .*so that the norm cannot be folded; call torch"):
        qtool.prepare(model, BOTH, IMAGES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64])
def test_parameters_of_another_type_are_refused_by_the_layer(dtype: torch.dtype) -> None:
    model = net()
    model[7].weight = nn.Parameter(model[7].weight.detach().to(dtype))
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(ModelError, match=rf"^7: its weight is {name}, and .*; call model\.float"):
        qtool.prepare(model, BOTH)


def test_parameters_of_another_type_are_let_in_where_nothing_is_quantized() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 2).double()
            self.table = nn.Parameter(torch.zeros(4, dtype=torch.float16))

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.body(x.float() / 255) + self.table.float()).double())

    pixels = torch.randint(0, 256, (5, 3), dtype=torch.uint8)
    model = qtool.prepare(Mixed(), BOTH | {"overrides": [{"match": "head", **FLOAT}]}, pixels)
    integer = qtool.convert(model.eval())
    assert far(integer(pixels), model(pixels)) < 0.2
    assert integer(pixels).dtype == torch.float64


def test_token_ids_may_be_any_integers() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    qtool.convert(qtool.prepare(model, BOTH, tokens))


def test_lazy_layers_need_a_pass_or_an_example() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ModelError, match=r"^0 is lazy: .*; run the model once before prepare"):
        qtool.prepare(lazy, BOTH)
    state = torch.get_rng_state()
    model = qtool.prepare(lazy, BOTH, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(quant_layers(model)) == ["0", "3"]
    assert prepared_state(model).recording.batch_norms == {"0": "1"}
    assert model.training
    assert type(lazy[0]) is nn.LazyConv2d
    qtool.convert(model)


class Head(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).tanh()


@pytest.mark.parametrize(
    ("model", "changes", "said"),
    [
        (lambda: nn.Sequential(nn.ReLU(), nn.Flatten()), {}, "the model has no layer with weights"),
        (lambda: nn.Sequential(nn.Flatten(), Head(108, 2)), {}, "1: Head is a subclass that may"),
        (lambda: nn.Embedding(4, 2), {}, "Embedding: Embedding is neither a convolution nor"),
        (net, {"overrides": [{"match": "*", **FLOAT}]}, "0: overrides.0 leaves weights and input"),
    ],
)
def test_a_network_with_nothing_to_quantize_is_refused(
    model: Callable[[], nn.Module], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=rf"^there is nothing to quantize: {said}"):
        qtool.prepare(model(), BOTH | changes, IMAGES)


def test_a_network_all_of_whose_layers_are_bypassed_is_refused_in_its_first_pass() -> None:
    class Bypassing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.fc.weight)

    said = "nothing to quantize: fc: the model uses its weight without calling it"
    with pytest.raises(ModelError, match=said):
        qtool.prepare(Bypassing(), BOTH, torch.randn(2, 3))
    model = qtool.prepare(Bypassing(), BOTH)
    with pytest.raises(ModelError, match=said):
        model(torch.randn(2, 3))


def test_settings_that_ask_for_nothing_leave_a_float_network_alone() -> None:
    model = qtool.prepare(net(), {}, torch.zeros(2, 3, 6, 6))
    assert not quant_layers(model)


@pytest.mark.parametrize("example", [torch.zeros(2, 3, 6, 6), torch.zeros(2, 3, 6, 6).byte()])
def test_an_example_of_zeros_is_refused_where_it_sets_scales(example: Tensor) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x.float())

    with pytest.raises(ModelError, match="all zeros, which no activation scale can be taken from"):
        qtool.prepare(Scaled(), BOTH, example)
    qtool.prepare(Scaled(), {"weights": {"bits": 4}}, example)


def test_one_of_several_inputs_may_be_zeros_and_an_example_may_be_constant() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x, self.h = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return self.h(torch.tanh(self.x(x) + h))

    qtool.convert(qtool.prepare(Recurrent(), BOTH, (torch.ones(2, 3), torch.zeros(2, 4))))


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (torch.empty(0, 3, 6, 6), r"the example is empty: input 0 is \[0, 3, 6, 6\]; give a batch"),
        (torch.empty(2, 3, 6, 6, device="meta"), r"the example \(input 0\) is on the meta device"),
        (torch.randn(2, 5, 6, 6), "the model fails on the example: RuntimeError: .*channels"),
        (torch.randn(2, 3, 6, 6).double(), "the model fails on the example: RuntimeError: "),
        ({"image": IMAGES}, "the model fails on the example: TypeError: .*'image'"),
        ("images", "example is a str; give one batch of inputs: a tensor"),
    ],
)
def test_an_example_that_does_not_serve_is_refused(example: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        qtool.prepare(net(), BOTH, example)


class Silent(nn.Module):
    """Returns what holds no tensor."""

    def __init__(self, answer: object = None) -> None:
        super().__init__()
        self.body, self.answer = net(), answer

    def forward(self, x: Tensor) -> object:
        self.body(x)
        return self.answer


@pytest.mark.parametrize(("answer", "what"), [(None, "None"), ({"loss": 3.0}, "a dict with")])
def test_a_model_that_returns_no_tensor_is_refused(answer: object, what: str) -> None:
    with pytest.raises(ModelError, match=f"the model returns {what}.*in which there is no tensor"):
        qtool.prepare(Silent(answer), BOTH, IMAGES)


def test_a_failure_where_places_are_looked_for_is_named_too() -> None:
    at_relus = BOTH | {"activations": {"bits": 8, "place": "relu_outputs"}}
    with pytest.raises(ModelError, match="the model fails on the example: RuntimeError"):
        qtool.prepare(net(), at_relus, torch.randn(2, 5, 6, 6))


def test_memory_that_runs_out_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(self: nn.Module, x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(nn.Flatten, "forward", runs_out)
    with pytest.raises(torch.OutOfMemoryError):
        qtool.prepare(net(), BOTH, IMAGES)


class Elsewhere(nn.Parameter):
    """A parameter that says it is on another device."""

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride] -- a fake
        return torch.device("cuda:1")


def on_two_devices() -> nn.Module:
    model = net()
    model[7].weight = Elsewhere(model[7].weight.detach())
    return model


def shared_inside() -> nn.Module:
    return nn.Sequential(qtool.prepare(net(), BOTH, IMAGES), nn.Linear(3, 2))


def part_of_an_integer_model() -> nn.Module:
    integer = qtool.convert(qtool.prepare(net(), BOTH, IMAGES))
    return nn.Sequential(integer.get_submodule("0"), nn.Flatten(), nn.Linear(64, 2))


def with_a_lock() -> nn.Module:
    model = net()
    vars(model[3])["lock"] = threading.Lock()
    return model


def with_another_forward() -> nn.Module:
    model = net()
    before = model[2].forward
    model[2].forward = lambda x: 2 * before(x)
    return model


def with_its_own_qtool() -> nn.Module:
    model = net()
    model.qtool = nn.Linear(2, 2)
    return model


def sparse() -> nn.Module:
    model = net()
    model[7].weight = nn.Parameter(model[7].weight.detach().to_sparse())
    return model


class Sharded(nn.Parameter):
    """A parameter of some library's own type."""


def of_a_library() -> nn.Module:
    model = net()
    model[7].weight = Sharded(model[7].weight.detach())
    return model


def quantized_by_torch() -> nn.Module:
    observer = torch.ao.quantization.FakeQuantize()
    return nn.Sequential(observer, *net())


KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "a function": (lambda: torch.relu, "prepare takes a torch.nn.Module, not a builtin_function"),
    "prepared": (
        lambda: qtool.prepare(net(), BOTH),
        "this model is prepared already; prepare the float one",
    ),
    "integer": (
        lambda: qtool.convert(qtool.prepare(net(), BOTH, IMAGES)),
        r"this is an integer model, from qtool\.convert; prepare the float one",
    ),
    "prepared inside": (shared_inside, r"^0 \(Sequential\) comes from qtool\.prepare already"),
    "a part of a prepared one": (
        lambda: nn.Sequential(*list(qtool.prepare(net(), BOTH).children())[:4]),
        r"^0 \(QuantConv2d\) comes from qtool\.prepare already",
    ),
    "a part of an integer one": (
        part_of_an_integer_model,
        r"^0 \(IntegerConv2d\) comes from qtool\.convert already",
    ),
    "an attribute taken": (with_its_own_qtool, "an attribute `qtool` of its own.*another name"),
    "DataParallel": (lambda: nn.DataParallel(net()), "the model is a DataParallel.*model inside"),
    "wrapped inside": (lambda: nn.Sequential(nn.DataParallel(net())), "^0 is a DataParallel"),
    "compiled": (lambda: torch.compile(net()), r"the model was compiled \(torch\.compile\).*first"),
    "compiled inside": (
        lambda: net(lambda layer: cast(nn.Module, torch.compile(layer))),
        r"^2 was compiled \(torch\.compile\)",
    ),
    "not to be copied": (with_a_lock, r"a copy, and 3\.lock cannot be copied \(TypeError: .*lock"),
    "another forward": (with_another_forward, "^2: its forward was replaced by a function"),
    "on meta": (lambda: net().to("meta"), r"^0\.weight is on the meta device.*to_empty"),
    "on two devices": (
        on_two_devices,
        r"devices: 0\.weight is on cpu, 7\.weight on cuda:1; put the whole model on one",
    ),
    "sparse": (sparse, r"^7: its weight is sparse_coo, and .* dense.*to_dense"),
    "of a library": (of_a_library, r"^7: its weight is a Sharded, and qtool quantizes plain"),
    "quantized by torch": (quantized_by_torch, "^0 is a FakeQuantize, quantized by other means"),
}


@pytest.mark.filterwarnings("ignore:.*torch.ao:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_float_model_that_can_be_copied_is_refused(kind: str) -> None:
    make, said = KINDS[kind]
    with pytest.raises(ModelError, match=said):
        qtool.prepare(make(), BOTH, IMAGES)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_scripted_models_are_refused() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(3, 2)))
    with pytest.raises(ModelError, match=r"^the model is a torch\.jit module .*made of"):
        qtool.prepare(scripted, BOTH)
    with pytest.raises(ModelError, match=r"^0 is a torch\.jit module"):
        qtool.prepare(nn.Sequential(scripted, nn.Linear(2, 2)), BOTH)


def test_models_that_keep_what_they_computed_are_copied() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.kept = net(), []

        def forward(self, x: Tensor) -> Tensor:
            self.last = self.body(x)
            self.kept.append(self.last)
            return self.last

    keeps = Keeps()
    keeps(IMAGES)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(keeps)
    model = qtool.prepare(keeps, BOTH, IMAGES)
    train(model)
    qtool.convert(model)


def test_a_forward_compiled_in_place_is_followed_into_the_copy() -> None:
    model = net()
    model.forward = torch.compile(model.forward, backend="eager")
    prepared = qtool.prepare(model, BOTH, IMAGES)
    assert prepared_state(prepared).recording.calls == {"0": 1, "2": 1, "7": 1}
    expected = prepared.eval()(IMAGES)
    prepared.forward = torch.compile(prepared.forward, backend="eager")
    integer = qtool.convert(prepared)
    assert "forward" not in vars(integer)
    assert 0 < far(integer(IMAGES), expected) < 0.2  # it computes in integers, itself


def test_tied_weights_train_together_and_convert() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.first = nn.Embedding(7, 4), nn.Linear(4, 4)
            self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
            self.second.weight = self.first.weight
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(self.table(x)).relu()))

    tokens = torch.arange(6).reshape(2, 3)
    model = qtool.prepare(Tied(), BOTH, tokens)
    assert model.get_parameter("head.weight") is model.get_parameter("table.weight")
    assert model.get_parameter("first.weight") is model.get_parameter("second.weight")
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    model(tokens).square().sum().backward()
    optimizer.step()
    integer = qtool.convert(model.eval())
    assert list(prepared_state(model).left_float) == ["table"]
    for name in ("first", "second"):  # one weight, and a learned scale for each
        scale = integer.get_buffer(f"{name}.weight_scale").reshape(-1, 1)
        codes = torch.round(model.get_parameter("first.weight") / scale).clamp(-7, 7)
        assert torch.equal(integer.get_buffer(f"{name}.codes").float(), codes)
    assert torch.equal(integer.get_parameter("table.weight"), model.get_parameter("table.weight"))
    with torch.no_grad():
        given, expected = integer(tokens), model(tokens)
    assert far(given, expected) < 0.2


def test_convert_leaves_the_model_as_it_was_and_may_be_called_again() -> None:
    model = qtool.prepare(net(), BOTH, IMAGES).train()
    model.get_submodule("3").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    first, second = qtool.convert(model), qtool.convert(model)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module.training for module in first.modules())
    assert torch.equal(first(IMAGES), second(IMAGES))


ASKED: dict[str, Callable[[nn.Module], object]] = {
    "convert": qtool.convert,
    "calibrate": lambda model: qtool.calibrate(model, [IMAGES]),
    "round_biases": qtool.round_biases,
}


@pytest.mark.parametrize("asked", ASKED)
def test_other_functions_say_what_they_were_given(asked: str) -> None:
    prepared = qtool.prepare(net(), BOTH, IMAGES)
    for given, what in [
        (net(), "it is a float model, which qtool.prepare takes"),
        (qtool.convert(prepared), "it is an integer model, from qtool.convert"),
        (nn.DataParallel(prepared), "a part, or another wrapping, of what qtool.prepare returned"),
    ]:
        with pytest.raises(ValueError, match=rf"did not come from qtool\.prepare: .*{what}"):
            ASKED[asked](given)


def test_statistics_of_an_integer_model_are_not_estimated_anew() -> None:
    integer = qtool.convert(qtool.prepare(net(), BOTH, IMAGES))
    with pytest.raises(ValueError, match=r"an integer model, from qtool\.convert"):
        qtool.reestimate_batch_norm(integer, [IMAGES])


def test_a_compiled_prepared_model_is_converted_as_itself() -> None:
    model = qtool.prepare(net(), BOTH, IMAGES)
    compiled: Any = torch.compile(model, backend="eager")
    expected, given = qtool.convert(model), qtool.convert(compiled)
    assert [spec.name for spec in converted_state(given).layers] == ["0", "2", "7"]
    assert torch.equal(given(IMAGES), expected(IMAGES))


def test_every_refusal_is_an_error_of_both_kinds() -> None:
    error = limits.LAZY.error(layer="fc")
    assert isinstance(error, ValueError)
    assert error.exit_code == 2
    assert limits.LAZY.fits(str(error))
    assert not limits.DTYPE.fits(str(error))
