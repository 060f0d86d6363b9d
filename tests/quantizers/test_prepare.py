"""Float model to fake-quantized model: which layers, with which settings, and the plan."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import qtool
from qtool.errors import RecipeError
from qtool.quantizers.control import blend_alphas, set_progress
from qtool.quantizers.layers import QuantConv2d, QuantLayer, QuantLinear
from qtool.quantizers.layers import quant_layers as layers_of
from qtool.quantizers.plan import mean_weight_bits, plan
from qtool.quantizers.prepare import prepared_state

BOTH = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}
LINEAR = {"name": "linear", "start": 0.0, "stop": 1.0}
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


class OddConv(nn.Conv2d):
    """A convolution that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class OddLinear(nn.Linear):
    """A linear layer by another name."""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 6, 1))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(torch.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Tied(nn.Module):
    """One convolution under two names, called twice in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.second = self.first
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(torch.tanh(self.first(torch.sin(x)))))


class OddAttention(nn.MultiheadAttention):
    def forward(self, *args: Tensor, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        return super().forward(*args, **kwargs)


class OddNet(nn.Module):
    """Layers that are left float, each for its own reason."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = OddConv(3, 4, 1), OddLinear(4, 4)
        self.attention = OddAttention(4, 2, batch_first=True)
        self.pair = nn.Bilinear(4, 4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = self.pair(x, x)
        return self.head(self.attention(x, x, x)[0] + self.linear(x))


def network() -> Net:
    torch.manual_seed(0)
    return Net()


def with_overrides(*overrides: dict[str, Any]) -> dict[str, Any]:
    return BOTH | {"overrides": list(overrides)}


def weight_bits(model: nn.Module) -> dict[str, int]:
    return {
        name: layer.weight_quantizer.bits if layer.weight_quantizer else 32
        for name, layer in layers_of(model).items()
    }


def train(model: nn.Module, steps: int = 3) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        model((1 + step) * IMAGES).square().sum().backward()
        optimizer.step()
    return model


def test_convolutions_and_linear_layers_are_swapped_and_nothing_else() -> None:
    model = qtool.prepare(network(), BOTH)
    swapped = {name: type(module) for name, module in layers_of(model).items()}
    conv, linear = QuantConv2d, QuantLinear
    assert swapped == {"stem": conv, "body.0": conv, "body.2": conv, "head": linear}
    assert type(model.get_submodule("norm")) is nn.BatchNorm2d


def test_the_model_itself_stays_as_it_was() -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    model = qtool.prepare(net, BOTH, IMAGES)
    train(model)
    assert [type(module) for module in net.modules()] == [type(m) for m in network().modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not hasattr(net, "qtool")
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


def test_the_copy_starts_from_the_same_weights_under_the_same_names() -> None:
    net = network()
    state = qtool.prepare(net, BOTH).state_dict()
    for name, tensor in net.state_dict().items():
        assert torch.equal(state[name], tensor)
    added = {name.split(".")[-1] for name in set(state) - set(net.state_dict())}
    tracked = {"codes", "direction", "frequency", "average", "frozen"}
    assert added == {"scale", "zero_point", "alpha", "observed", "_extra_state"} | tracked


def test_without_settings_the_model_computes_what_it_did() -> None:
    net = network().eval()
    model = qtool.prepare(net, {}, IMAGES)
    assert torch.equal(model(IMAGES), net(IMAGES))
    assert set(prepared_state(model).left_float) == {"stem", "body.0", "body.2", "head"}


def test_a_convolution_computes_with_rounded_input_and_weight() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1, padding_mode="reflect", bias=True))
    quantization = {
        "weights": {"bits": 4, "range": "absmax", "granularity": "per_tensor"},
        "activations": {"bits": 3, "place": "layer_inputs", "range": "absmax"},
    }
    model = qtool.prepare(net, quantization, IMAGES).eval()
    float_twin = copy.deepcopy(net)
    weight = net[0].weight.detach()
    step = weight.abs().max() / 7
    float_twin[0].weight.data = torch.round(weight / step) * step
    input_step = IMAGES.abs().max() / 3
    assert torch.equal(model(IMAGES), float_twin(torch.round(IMAGES / input_step) * input_step))


def test_a_bare_layer_is_a_model_too() -> None:
    model = qtool.prepare(nn.Linear(4, 2), BOTH, torch.ones(3, 4))
    assert type(model) is QuantLinear
    assert [row.name for row in plan(model)] == [""]


def test_subclasses_and_attention_are_left_float_with_the_reason() -> None:
    net = OddNet()
    model = qtool.prepare(net, {"weights": {"bits": 4}}, IMAGES)
    assert list(layers_of(model)) == ["linear", "head"]
    assert prepared_state(model).left_float == {
        "conv": "OddConv is a subclass that may differ",
        "attention": "OddAttention may compute another attention than torch.nn.MultiheadAttention",
        "attention.out_proj": "the model uses its weight without calling it",
        "pair": "Bilinear is neither a convolution nor Linear",
    }
    assert type(model.get_submodule("conv")) is OddConv
    assert model(IMAGES).shape == (2, 64, 2)


def test_overrides_go_by_pattern_and_the_first_match_wins() -> None:
    quantization = with_overrides(
        {"match": ["head", "body.2"], "weights": {"bits": 8}},
        {"match": "body.*", "weights": {"bits": 2}},
    )
    model = qtool.prepare(network(), quantization)
    assert weight_bits(model) == {"stem": 4, "body.0": 2, "body.2": 8, "head": 8}


def test_a_pattern_is_matched_with_the_whole_name() -> None:
    quantization = with_overrides({"match": "*.0", "weights": {"bits": 2}})
    bits = weight_bits(qtool.prepare(network(), quantization))
    assert bits == {"stem": 4, "body.0": 2, "body.2": 4, "head": 4}
    with pytest.raises(RecipeError, match="'bod' matches no layer"):
        qtool.prepare(network(), with_overrides({"match": "bod", "weights": {"bits": 2}}))


def test_null_leaves_one_side_float() -> None:
    quantization = with_overrides(
        {"match": "stem", "activations": None}, {"match": "head", "weights": None}
    )
    found = layers_of(qtool.prepare(network(), quantization))
    assert found["stem"].input_quantizer is None
    assert found["stem"].weight_quantizer is not None
    assert found["head"].weight_quantizer is None
    assert found["head"].input_quantizer is not None


def test_null_on_both_sides_leaves_the_layer_alone() -> None:
    quantization = with_overrides({"match": "head", "weights": None, "activations": None})
    model = qtool.prepare(network(), quantization)
    assert type(model.get_submodule("head")) is nn.Linear
    assert prepared_state(model).left_float == {
        "head": "overrides.0 leaves weights and input float"
    }


def test_a_pattern_of_a_site_is_a_mistake_where_there_are_no_sites() -> None:
    section = {
        "activations": {"bits": 4, "place": "layer_inputs"},
        "overrides": [{"match": "layer1.0:add0", "activations": {"bits": 8}}],
    }
    why = "sites are there with place: every_value alone"
    with pytest.raises(RecipeError, match=f"'layer1.0:add0' is a site; {why}"):
        qtool.prepare(network(), section)


def test_a_pattern_without_a_layer_is_a_mistake_and_all_of_them_are_listed() -> None:
    quantization = with_overrides(
        {"match": ["stem", "heat"], "weights": {"bits": 8}},
        {"match": "norm", "weights": {"bits": 8}},
    )
    with pytest.raises(RecipeError) as caught:
        qtool.prepare(network(), quantization)
    assert str(caught.value).splitlines() == [
        "quantization: 2 problems",
        "  overrides.0.match: 'heat' matches no layer; did you mean head?",
        "  overrides.1.match: 'norm' matches no layer; choose one of: stem, body.0, body.2, head",
    ]


def test_a_wrong_section_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError, match=r"weights\.bits: 9 is more than 8"):
        qtool.prepare(network(), {"weights": {"bits": 9}})


def test_the_learning_rate_factor_reaches_its_layer() -> None:
    quantization = with_overrides({"match": "stem", "weights": {"learning_rate_scale": 0.5}})
    found = layers_of(qtool.prepare(network(), quantization))
    assert {name: layer.learning_rate_scale for name, layer in found.items()} == {
        "stem": 0.5,
        "body.0": 1.0,
        "body.2": 1.0,
        "head": 1.0,
    }


class ByItself(nn.Module):
    """A model that uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).mean((2, 3))
        return nn.functional.linear(x, self.head.weight, self.head.bias)


class WithAuxiliary(nn.Module):
    """A model with a head that only training calls, as torchvision's googlenet and inception."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.head, self.auxiliary = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3))
        return self.head(x) + self.auxiliary(x) if self.training else self.head(x)


def test_a_layer_whose_weight_is_used_without_calling_it_is_called_where_that_is_known() -> None:
    torch.manual_seed(0)
    net = ByItself().eval()
    model = qtool.prepare(net, BOTH, IMAGES)
    assert list(layers_of(model)) == ["conv", "head"]
    assert prepared_state(model).left_float == {}
    twin = qtool.prepare(net, BOTH)
    twin(IMAGES)
    assert list(layers_of(twin)) == ["conv"]
    assert type(twin.get_submodule("head")) is nn.Linear
    assert prepared_state(twin).left_float == {
        "head": "the model uses its weight without calling it"
    }
    assert list(twin.get_submodule("head").state_dict()) == ["weight", "bias"]


def test_a_checkpoint_of_such_a_model_fits_a_freshly_prepared_one() -> None:
    torch.manual_seed(0)
    source = qtool.prepare(ByItself(), BOTH, IMAGES)
    target = qtool.prepare(ByItself(), BOTH, 2 * IMAGES)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.eval()(IMAGES), source.eval()(IMAGES))


def test_a_layer_that_only_training_calls_is_quantized() -> None:
    torch.manual_seed(0)
    model = qtool.prepare(WithAuxiliary().eval(), BOTH, IMAGES)
    assert list(layers_of(model)) == ["conv", "head", "auxiliary"]
    model.train()(IMAGES).sum().backward()
    scale = model.get_parameter("auxiliary.weight_quantizer.scale")
    assert scale.grad is not None


def test_quantizers_are_in_the_mode_of_their_layer() -> None:
    quantization = {
        "weights": {"bits": 4, "range": "absmax"},
        "activations": {"bits": 4, "place": "layer_inputs", "range": "ema_min_max"},
    }
    for training in (True, False):
        model = qtool.prepare(network().train(training), quantization, IMAGES)
        assert [m for m in model.modules() if m.training is not training] == []


def test_an_evaluation_right_after_prepare_moves_no_scale() -> None:
    quantization = {
        "weights": {"bits": 4, "range": "absmax"},
        "activations": {"bits": 4, "place": "layer_inputs", "range": "ema_min_max"},
    }
    model = qtool.prepare(network().eval(), quantization, IMAGES)
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    model(50 * IMAGES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_buffers())


def test_a_tied_layer_stays_one_layer() -> None:
    model = qtool.prepare(Tied(), BOTH, IMAGES)
    assert model.get_submodule("first") is model.get_submodule("second")
    assert list(layers_of(model)) == ["first"]
    assert prepared_state(model).recording.batch_norms == {}
    assert prepared_state(model).recording.calls == {"first": 2}


@pytest.mark.parametrize("inputs", ["learned", "absmax", "ema_min_max"])
@pytest.mark.parametrize("weights", ["learned", "absmax", "mse"])
def test_a_layer_that_is_called_twice_in_a_pass_trains(weights: str, inputs: str) -> None:
    model = qtool.prepare(
        Tied(),
        {
            "weights": {"bits": 4, "range": weights},
            "activations": {"bits": 4, "place": "layer_inputs", "range": inputs},
        },
    )
    before = model.get_parameter("first.weight").detach().clone()
    train(model)
    assert not torch.equal(model.get_parameter("first.weight"), before)


def test_learned_scales_are_parameters_before_any_data_is_seen() -> None:
    model = qtool.prepare(network(), BOTH)
    names = {name for name, _ in model.named_parameters() if name.endswith("scale")}
    expected = {
        f"{layer}.{side}_quantizer.scale"
        for layer in ("stem", "body.0", "body.2", "head")
        for side in ("weight", "input")
    }
    assert names == expected
    before = dict(model.named_parameters())
    model.train()(IMAGES).sum().backward()
    assert all(p is before[name] for name, p in model.named_parameters())
    assert all(before[name].grad is not None for name in names)


@pytest.mark.parametrize(
    "quantization",
    [
        BOTH,
        {
            "weights": {"bits": 1},
            "activations": {"bits": 2, "place": "layer_inputs", "estimator": "clipped_relu"},
        },
        {
            "weights": {"bits": 4, "range": "absmax", "refit_every": 2},
            "activations": {
                "bits": 8,
                "place": "layer_inputs",
                "range": "ema_min_max",
                "grid": "asymmetric",
            },
        },
        {
            "weights": {"bits": 3, "range": "mse", "blend": LINEAR},
            "activations": {"bits": 4, "place": "layer_inputs", "range": "mse"},
        },
    ],
    ids=["learned", "one bit", "asymmetric", "blend"],
)
@pytest.mark.parametrize("with_example", [True, False])
def test_a_checkpoint_in_a_freshly_prepared_model_gives_equal_outputs(
    quantization: dict[str, Any], with_example: bool
) -> None:
    source = qtool.prepare(network(), quantization, IMAGES if with_example else None)
    set_progress(source, 0.5)
    train(source)
    torch.manual_seed(9)
    target = qtool.prepare(Net(), quantization)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target.eval()(IMAGES), source.eval()(IMAGES))
    assert torch.equal(target.train()(IMAGES), source.train()(IMAGES))


def test_progress_reaches_every_blend() -> None:
    quantization = {
        "weights": {"bits": 4, "range": "absmax", "blend": LINEAR},
        "activations": {"bits": 4, "place": "layer_inputs", "range": "absmax"},
        "overrides": [{"match": "head", "weights": {"estimator": "identity"}}],
    }
    model = qtool.prepare(network(), quantization)
    set_progress(model, 0.25)
    names = [f"{layer}.weight_quantizer" for layer in ("stem", "body.0", "body.2")]
    assert blend_alphas(model) == dict.fromkeys(names, 0.25)
    set_progress(model, 1.0)
    assert blend_alphas(model) == dict.fromkeys(names, 1.0)
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == ["stem.weight", "body.0.weight", "body.2.weight"]


def test_the_plan_shows_every_layer_in_order() -> None:
    quantization = {
        "weights": {"bits": 4},
        "activations": {"bits": 3, "place": "layer_inputs", "estimator": "clipped_relu"},
        "overrides": [
            {"match": "stem", "weights": {"bits": 8, "grid": "full", "range": "mse"}},
            {"match": "body.0", "weights": None, "activations": None},
            {"match": "body.2", "weights": {"range": "absmax", "blend": LINEAR}},
            {"match": "head", "weights": {"granularity": "per_tensor"}, "activations": None},
        ],
    }
    model = qtool.prepare(network(), quantization, IMAGES.relu())
    found = {row.name: row for row in plan(model)}
    assert list(found) == ["stem", "body.0", "body.2", "head"]
    assert found["stem"].shape == [4, 3, 3, 3]
    assert found["stem"].weights == "8-bit full"
    assert found["stem"].weights_how == "mse, straight_through, per channel"
    assert found["stem"].activations == "3-bit unsigned"
    assert found["stem"].activations_how == "learned, clipped_relu"
    assert found["body.0"].weights == found["body.0"].activations == "float"
    assert found["body.0"].shape == [4, 1, 3, 3]
    assert found["body.0"].why == "overrides.1 leaves weights and input float"
    assert found["body.2"].weights_how == "absmax, blend linear(start=0.0, stop=1.0), per channel"
    assert found["head"].weights_how == "learned, straight_through, per tensor"
    assert found["head"].activations == "float"
    assert [row.why for row in plan(model) if row.name != "body.0"] == [""] * 3


def test_the_plan_says_auto_before_the_first_pass() -> None:
    assert plan(qtool.prepare(network(), BOTH))[0].activations == "4-bit auto"


def test_only_prepared_models_have_a_plan() -> None:
    with pytest.raises(ValueError, match=r"did not come from qtool\.prepare"):
        plan(network())


def test_the_mean_of_the_bits_is_weighed_by_the_number_of_weights() -> None:
    quantization = with_overrides(
        {"match": "stem", "weights": {"bits": 8}}, {"match": "head", "weights": None}
    )
    model = qtool.prepare(network(), quantization)
    stem, depthwise, pointwise, head = 4 * 3 * 9, 4 * 9, 6 * 4, 6 * 5
    total = 8 * stem + 4 * (depthwise + pointwise) + 32 * head
    assert mean_weight_bits(model) == total / (stem + depthwise + pointwise + head)


def test_the_printed_model_shows_every_quantizer() -> None:
    text = str(qtool.prepare(network(), BOTH, IMAGES))
    assert text.count("WeightQuantizer(4 bits, narrow, learned, straight_through)") == 4
    assert text.count("ActivationQuantizer(4 bits, ") == 4


@pytest.mark.parametrize(
    ("name", "size", "convolutions"),
    [
        ("resnet18", 32, 20),
        ("mobilenet_v2", 32, 52),
        ("squeezenet1_1", 32, 26),
        ("shufflenet_v2_x0_5", 32, 56),
    ],
)
def test_a_torchvision_model_is_quantized_trained_and_paired_with_its_batch_norms(
    name: str, size: int, convolutions: int
) -> None:
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, num_classes=5)
    images = torch.randn(2, 3, size, size)
    model = qtool.prepare(net, BOTH, images).train()
    found = layers_of(model)
    assert sum(isinstance(layer, QuantConv2d) for layer in found.values()) == convolutions
    assert prepared_state(model).left_float == {}
    assert not any(type(module) in (nn.Conv2d, nn.Linear) for module in model.modules())

    # in these models each batch norm is written right after its convolution
    leaves = [(n, m) for n, m in net.named_modules() if not list(m.children())]
    expected = {
        first: second
        for (first, conv), (second, norm) in pairwise(leaves)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    }
    assert prepared_state(model).recording.batch_norms == expected
    assert len(expected) == (0 if name.startswith("squeezenet") else convolutions)

    logits = model(images)
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    for layer_name, layer in found.items():
        assert isinstance(layer, QuantLayer)
        assert layer.weight.grad is not None, layer_name
        assert torch.isfinite(layer.weight.grad).all(), layer_name
        assert layer.weight_quantizer is not None
        assert layer.weight_quantizer.scale.grad is not None, layer_name


@pytest.mark.parametrize("name", ["mse", "ppq"])
def test_a_plan_is_the_same_without_a_search(name: str) -> None:
    section = {
        "weights": {"bits": 3, "range": name},
        "activations": {"bits": 4, "place": "layer_inputs"},
    }
    searched = qtool.prepare(Net(), section, IMAGES)
    rough = qtool.prepare(Net(), section, IMAGES, search=False)
    assert plan(rough) == plan(searched)
    for layer in ("stem", "head"):
        state = rough.get_submodule(layer).state_dict()
        largest = state["weight"].flatten(1).abs().amax(1)
        assert torch.allclose(state["weight_quantizer.scale"].flatten(), largest / 3)
    rough.load_state_dict(searched.state_dict())
    assert torch.equal(rough.eval()(IMAGES), searched.eval()(IMAGES))


def test_a_model_that_was_converted_before_its_first_pass_runs() -> None:
    images = torch.randn(2, 3, 8, 8)
    section = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}
    trained = qtool.prepare(network(), section, images)
    loaded = qtool.prepare(network(), section)
    loaded.load_state_dict(trained.state_dict())
    integer = qtool.convert(loaded, [images])
    assert torch.equal(integer(images), integer(images))
