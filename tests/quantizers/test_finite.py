"""Numbers that no computation survives are found where they come in, and named."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import nn

import qtool
from qtool.errors import InputError, ModelError
from qtool.quantizers.door.finite import bad_numbers, refuse_bad_numbers, refuse_bad_values
from tests.kit import float_net

NAN, INF = float("nan"), float("inf")
SECTION = {
    "weights": {"bits": 4, "range": "absmax"},
    "activations": {"bits": 4, "place": "layer_inputs"},
}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("conv1.weight", NAN, "conv1.weight holds nan (1 of 216 values are not finite)"),
        ("conv2.bias", INF, "conv2.bias holds inf (1 of 8 values are not finite)"),
        ("fc.weight", -INF, "fc.weight holds inf (1 of 40 values are not finite)"),
        ("bn1.running_mean", NAN, "bn1.running_mean holds nan (1 of 8 values are not finite)"),
        ("bn2.running_var", INF, "bn2.running_var holds inf (1 of 8 values are not finite)"),
        ("bn2.running_var", -0.5, "bn2.running_var holds -0.5; it must be not negative"),
    ],
)
def test_a_planted_number_is_named(name: str, value: float, said: str) -> None:
    net = float_net()
    refuse_bad_numbers(net)
    net.state_dict()[name].reshape(-1)[3] = value
    assert bad_numbers(net) == [said]
    with pytest.raises(ModelError) as caught:
        refuse_bad_numbers(net)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, InputError)  # exit code 2 on the command line
    assert str(caught.value) == f"{said}; give weights, statistics and scales to compute with"


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
def test_a_scale_that_is_not_learned_is_positive_and_finite(value: float) -> None:
    model = qtool.prepare(float_net(), SECTION, torch.randn(4, 3, 8, 8))
    assert bad_numbers(model) == []
    model.state_dict()["conv2.weight_quantizer.scale"][2] = value
    assert [line.split()[0] for line in bad_numbers(model)] == ["conv2.weight_quantizer.scale"]


def test_a_learned_scale_may_stand_below_zero_after_its_last_update() -> None:
    model = qtool.prepare(float_net(), SECTION, torch.randn(4, 3, 8, 8))
    scale = model.state_dict()["conv2.input_quantizer.scale"]
    scale.fill_(-0.1)
    assert bad_numbers(model) == []
    for value in (0.0, 1e-40, -1e-40):
        scale.fill_(value)
        said = f"conv2.input_quantizer.scale holds {float(scale):.4g}; it must be not 0"
        assert bad_numbers(model) == [said]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fc.weight", NAN),
        ("bn2.running_var", INF),
        ("conv1.weight_quantizer.scale", 0.0),
        ("conv2.input_quantizer.scale", 1e-40),
        ("fc.input_quantizer.scale", INF),
    ],
)
def test_a_state_that_cannot_be_computed_with_is_refused_as_it_is_loaded(name, value) -> None:
    model = qtool.prepare(float_net(), SECTION, torch.randn(4, 3, 8, 8))
    state = deepcopy(model.state_dict())
    model.load_state_dict(state)
    state[name].reshape(-1)[0] = value
    wrapped = nn.Sequential(model)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        model.load_state_dict(state)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        wrapped.load_state_dict({f"0.{key}": entry for key, entry in state.items()})
    pickle.loads(pickle.dumps(model))  # its hook, too


def test_many_bad_tensors_are_counted_and_shared_ones_named_once() -> None:
    net = nn.Sequential(*[nn.Linear(2, 2) for _ in range(5)])
    net.append(net[0])
    for parameter in net.parameters():
        parameter.data.fill_(NAN)
    with pytest.raises(ModelError, match=r"^0\.weight holds nan .*; 2\.weight .*, and 5 more; "):
        refuse_bad_numbers(net)


def test_what_has_no_values_yet_is_passed_over() -> None:
    with torch.device("meta"):
        net = nn.Linear(2, 2)
    assert bad_numbers(net) == bad_numbers(nn.Sequential(nn.LazyLinear(3))) == []


def test_inputs_are_looked_at_wherever_they_stand() -> None:
    images = torch.zeros(2, 3)
    refuse_bad_values({"a": (images, torch.ones(2, dtype=torch.int64), None)}, "the example")
    images[1, 2] = INF
    said = r"^the example holds inf \(1 of 6 values are not finite\); give values"
    with pytest.raises(ModelError, match=said):
        refuse_bad_values({"a": [images]}, "the example")


def test_prepare_refuses_them_before_it_makes_anything() -> None:
    net, example = float_net(), torch.randn(4, 3, 8, 8)
    with pytest.raises(ValueError, match=r"^the example holds nan \(1 of 768 values"):
        qtool.prepare(net, SECTION, torch.where(example == example.amax(), NAN, example))
    net.conv2.weight.data[0, 0, 0, 0] = INF
    with pytest.raises(ValueError, match=r"^conv2\.weight holds inf \(1 of 576 values"):
        qtool.prepare(net, SECTION, example)


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("asks", [qtool.calibrate, qtool.reestimate_batch_norm])
def test_a_pixel_of_a_batch_is_named_and_nothing_has_changed(asks, value: float) -> None:
    model = qtool.prepare(float_net(), SECTION, torch.randn(4, 3, 8, 8)).eval()
    before = deepcopy(model.state_dict())
    batches = list(torch.randn(3, 4, 3, 8, 8))
    batches[1][2, 1, 5, 6] = value
    kind = "nan" if value != value else "inf"
    with pytest.raises(ValueError, match=rf"^batch 2 holds {kind} \(1 of 768 values are"):
        asks(model, [(batch, torch.zeros(4)) for batch in batches])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_values_that_overflow_on_their_way_are_named_by_their_quantizer() -> None:
    net = float_net()
    net.bn1.weight.data.fill_(3e38)
    with pytest.raises(ValueError, match=r"^conv2\.input_quantizer: what it was shown holds "):
        qtool.prepare(net, SECTION, torch.randn(4, 3, 8, 8))


@pytest.mark.parametrize("scale", [1e-7, 1e4])
@pytest.mark.parametrize("side", ["weights", "activations"])
def test_a_given_scale_that_leaves_nothing_is_refused(side: str, scale: float) -> None:
    section = deepcopy(SECTION)
    section[side] |= {"bits": 4, "range": {"name": "fixed", "scale": scale}}
    place = {"weights": "weight", "activations": "input"}[side]
    what = "saturates every value" if scale < 1 else "makes every value 0"
    with pytest.raises(ValueError, match=rf"^conv1\.{place}_quantizer: range fixed.* {what}: "):
        qtool.prepare(float_net(), section, torch.randn(4, 3, 8, 8))
    section[side]["bits"] = 1
    qtool.prepare(float_net(), section, torch.randn(4, 3, 8, 8))  # signs are left
