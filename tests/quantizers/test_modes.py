"""What is trained is what is deployed: layers by what both modes of a model do with them."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.errors import ConversionError
from qtool.graph.attention import make_layered
from qtool.quantizers.layers import QuantLinear, plain_type
from qtool.quantizers.layers import quant_layers as layers_of
from qtool.quantizers.relu import quant_relus
from tests.kit import evaluate_by_hand

BOTH = {"weights": {"bits": 6}, "activations": {"bits": 8, "place": "layer_inputs"}}
AT_RELUS = {"weights": {"bits": 6}, "activations": {"bits": 8, "place": "relu_outputs"}}
X = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))
BYPASSED = "the model uses its weight without calling it"
UNCALLED = "no forward pass in evaluation mode calls it"


def train(model: nn.Module, *inputs: Tensor, steps: int = 2) -> nn.Module:
    """Train a little; a model that returns several outputs trains on all."""
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model.train()
    for _ in range(steps):
        output = model(*inputs)
        outputs = output if isinstance(output, tuple) else (output,)
        optimizer.zero_grad()
        torch.stack([one.square().mean() for one in outputs]).sum().backward()
        optimizer.step()
    return model.eval()


def assert_converts(net: nn.Module, model: nn.Module, x: Tensor) -> nn.Module:
    """Convert, and compare with an evaluation by hand; return the integer model."""
    qtool.round_biases(model)
    integer = qtool.convert(model)
    with torch.no_grad():
        expected = evaluate_by_hand(net, model, x)
        room = 0.02 * float(expected.std())
        torch.testing.assert_close(integer(x).double(), expected, rtol=0, atol=room)
    return integer


class Encoder(nn.Module):
    """A transformer's layer, whose fast path in evaluation mode reads all weights itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x)).mean(1))


class OwnAttention(nn.MultiheadAttention):
    """Attention that may compute something else, for all that can be told."""

    def forward(self, *args: Tensor, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        return super().forward(*args, **kwargs)


def own_attention(net: Encoder) -> Encoder:
    """Return the encoder with attention of its own, whose fast path is taken still."""
    net.layer.self_attn.__class__ = OwnAttention
    return net


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_a_fast_path_that_reads_weights_leaves_its_layers_float(training: bool) -> None:
    torch.manual_seed(0)
    net = own_attention(Encoder()).train(training)
    model = qtool.prepare(net, BOTH, X)
    assert list(layers_of(model)) == ["embed", "head"]
    left = model.qtool.left_float
    for name in ("layer.linear1", "layer.linear2", "layer.self_attn.out_proj"):
        assert left[name] == BYPASSED
    assert left["layer.self_attn"].startswith("OwnAttention may compute another attention")
    with torch.enable_grad():
        train(model, X)
    assert_converts(net, model, X)


@torch.no_grad()
def test_without_an_example_a_fast_path_is_found_when_the_model_is_converted() -> None:
    torch.manual_seed(0)
    net = own_attention(Encoder()).train()
    model = qtool.prepare(net, BOTH)
    with torch.enable_grad():
        train(model, X)
    assert "layer.linear1" in layers_of(model)
    qtool.round_biases(model)
    integer = qtool.convert(model)
    assert integer.qtool.left_float["layer.linear1"] == BYPASSED
    torch.testing.assert_close(integer(X), model(X), rtol=0, atol=0.02)


@pytest.mark.parametrize("example", [None, X])
@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_an_encoder_is_quantized_and_its_fast_path_is_not_taken(
    training: bool, example: Tensor | None
) -> None:
    torch.manual_seed(0)
    net = Encoder().train(training)
    model = qtool.prepare(net, BOTH, example)
    with torch.enable_grad():
        train(model, X)
    names = ["self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2"]
    assert list(layers_of(model)) == ["embed", *(f"layer.{name}" for name in names), "head"]
    assert model.qtool.left_float == {}
    make_layered(net, ["layer.self_attn"], [])
    assert_converts(net, model, X)


def test_a_prepared_state_from_before_has_its_attention_float_still() -> None:
    torch.manual_seed(0)
    net = Encoder().eval()
    state = qtool.prepare(net, BOTH, X).state_dict()
    inside = ("layer.self_attn.in_proj", "layer.self_attn.out_proj", "layer.linear")
    old = {k: v for k, v in state.items() if not (k.startswith(inside) and "_quantizer." in k)}
    for kind in ("weight", "bias"):
        old[f"layer.self_attn.in_proj_{kind}"] = old.pop(f"layer.self_attn.in_proj.{kind}")
    model = qtool.prepare(net, BOTH, X)
    model.load_state_dict(old)
    assert list(layers_of(model)) == ["embed", "head"]
    integer = qtool.convert(model)
    assert [spec.name for spec in integer.qtool.layers] == ["embed", "head"]
    why = integer.qtool.left_float["layer.linear1"]
    assert why.startswith("the state that was loaded has it float")
    plain = qtool.prepare(net, BOTH, X)
    plain.load_state_dict(net.state_dict(), strict=False)  # of a float model: stays quantized
    assert len(layers_of(plain)) == 6


class Branches(nn.Module):
    """A head that only training calls, one that only evaluation calls, one that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.relu = nn.Linear(8, 8), nn.ReLU()
        self.head, self.auxiliary, self.spare = nn.Linear(8, 3), nn.Linear(8, 3), nn.Linear(8, 3)
        self.auxiliary_relu, self.late = nn.ReLU(), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.relu(self.body(x.mean(1)))
        if self.training:
            return self.head(x), self.late(self.auxiliary_relu(self.auxiliary(x)))
        return self.head(x)


@pytest.mark.parametrize("quantization", [BOTH, AT_RELUS], ids=["layer_inputs", "relu_outputs"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("trained", [False, True])
def test_layers_that_inference_does_not_call_are_released_and_named(
    trained: bool, training: bool, quantization: dict[str, dict[str, object]]
) -> None:
    torch.manual_seed(0)
    net = Branches().train(training)
    model = qtool.prepare(net, quantization, X)
    if trained:
        train(model, X)
    qtool.calibrate(model.eval(), [X])
    integer = assert_converts(net, model, X)
    assert list(integer.qtool.left_float) == ["auxiliary", "spare", "late"]
    assert set(integer.qtool.left_float.values()) == {UNCALLED}
    assert [spec.name for spec in integer.qtool.layers] == ["body", "head"]
    assert type(integer.get_submodule("auxiliary")) is nn.Linear


def test_a_range_that_inference_needs_is_refused_by_name_still() -> None:
    model = qtool.prepare(Branches(), BOTH)
    with pytest.raises(ConversionError, match=r"head\.input_quantizer"):
        qtool.convert(model, [X])


class Plain(nn.Linear):
    """Adds nothing to what a linear layer computes."""

    def count(self) -> int:
        return self.weight.numel()


class Doubled(nn.Conv2d):
    """Computes something else by another method."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2 * weight, bias)


def test_subclasses_that_compute_the_same_are_quantized_and_stay_what_they_are() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Plain(8, 5), nn.ReLU(), Plain(5, 2))
    model = qtool.prepare(net.eval(), BOTH, X)
    first = model[0]
    assert isinstance(first, Plain)
    assert isinstance(first, QuantLinear)
    assert type(first) is type(model[2])
    assert first.count() == 40
    train(model, X)
    for twin in (copy.deepcopy(model), _saved_and_loaded(model)):
        assert isinstance(twin[0], Plain)
        assert torch.equal(twin(X), model(X))
    assert_converts(net, model, X)
    assert type(net[0]) is Plain


def _saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_what_computes_something_else_is_told_from_what_does_not() -> None:
    patched = nn.Linear(2, 2)
    patched.forward = lambda x: x
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    lazy_no_more = nn.LazyLinear(2)
    lazy_no_more(torch.ones(1, 3))
    assert plain_type(Doubled(1, 1, 1)) is None
    assert plain_type(patched) is None
    assert plain_type(parametrized) is None
    assert plain_type(nn.Bilinear(1, 1, 1)) is None
    assert plain_type(lazy_no_more) is nn.Linear
    assert plain_type(Plain(2, 2)) is nn.Linear
    assert plain_type(nn.Conv2d(1, 1, 1)) is nn.Conv2d


class Reads(nn.Module):
    """Reads a bias, a weight or both past their layers, in one mode or both."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.first, self.second, self.what = nn.Linear(8, 8), nn.Linear(8, 8), what

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        if self.what == "bias":
            return self.second(y) + self.second.bias
        if self.what == "weight":
            return self.second(y) + self.second.weight.mean()
        if self.what == "function":
            return F.linear(y, self.second.weight) + self.second.weight[0, 0]
        if self.what == "training" and self.training:
            return F.linear(y, self.second.weight, self.second.bias)
        return self.second(y)


@pytest.mark.parametrize("what", ["bias", "weight", "function", "training"])
def test_a_layer_that_is_read_past_it_stays_float(what: str) -> None:
    torch.manual_seed(0)
    net = Reads(what).eval()
    model = qtool.prepare(net, BOTH, X)
    assert list(layers_of(model)) == ["first"]
    assert model.qtool.left_float == {"second": BYPASSED}
    assert_converts(net, train(model, X), X)


class OwnWeights(nn.Module):
    """Computes with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.kernel = nn.Linear(8, 8), nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btf,of->bo", self.layer(x), self.kernel)


def test_weights_that_functions_use_are_named_with_the_module_that_holds_them() -> None:
    net = nn.Sequential(OwnWeights())
    model = qtool.prepare(net.eval(), BOTH, X)
    assert model.qtool.left_float == {"0": "OwnWeights uses its own kernel by functions"}
    assert_converts(net, model, X)


class OddInTraining(nn.Module):
    """Fails in training mode without labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.training:
            assert labels is not None
        return self.layer(x)


def test_a_model_that_fails_in_training_mode_is_prepared_by_the_other() -> None:
    model = qtool.prepare(OddInTraining().eval(), BOTH, X)
    assert list(layers_of(model)) == ["layer"]
    assert not model.training


class NeedsInPlace(nn.Module):
    """Reads the input of a ReLU again, which that ReLU has rectified meanwhile."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))
        self.relu, self.other = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(self.relu(x))
        return self.third(self.other(x + y if self.again else y))


@pytest.mark.parametrize("again", [False, True])
def test_a_relu_whose_input_is_read_again_keeps_working_in_place(again: bool) -> None:
    torch.manual_seed(0)
    net = NeedsInPlace(again).eval()
    model = qtool.prepare(net, AT_RELUS, X)
    assert list(quant_relus(model)) == (["other"] if again else ["relu", "other"])
    assert_converts(net, model, X)


class WritesBehindRelu(nn.Module):
    """Writes into what a ReLU made, directly or through a view, before a layer reads it."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU()
        self.view = view

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.first(x))
        if self.view:
            y[..., :2].sub_(0.77)
        else:
            y[..., :2] = -0.77
        return self.second(y)


@pytest.mark.parametrize("view", [False, True])
def test_what_was_written_behind_a_relu_is_not_taken_for_its_output(view: bool) -> None:
    torch.manual_seed(0)
    net = WritesBehindRelu(view).eval()
    model = qtool.prepare(net, AT_RELUS, X)
    assert not quant_relus(model)
    assert_converts(net, model, X)


class Another(nn.Module):
    """A layer in training mode, and another one in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.trained = nn.Linear(8, 8), nn.Linear(8, 8)
        self.deployed, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        layer = self.trained if self.training else self.deployed
        return self.head(layer(self.embed(x).relu()).mean(1))


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_that_evaluation_alone_calls_has_a_range_from_the_example(training: bool) -> None:
    torch.manual_seed(0)
    net = Another().train(training)
    model = qtool.prepare(net, BOTH, X)
    assert [module.training for module in model.modules()] == [training] * len([*model.modules()])
    train(model, X)
    assert assert_converts(net, model, X).qtool.left_float == {"trained": UNCALLED}
