"""What no integer model can be made of is named by layer and value, and nothing is changed."""

import copy

import pytest
import torch
from torch import nn

import qtool
from qtool.errors import ConversionError
from tests.kit import float_net

NAN, INF = float("nan"), float("inf")
IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(2))
LEARNED = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}
OBSERVED = {
    "weights": {"bits": 4, "range": "absmax"},
    "activations": {
        "bits": 4,
        "place": "layer_inputs",
        "grid": "asymmetric",
        "range": "ema_min_max",
    },
}


def plant(model: nn.Module, name: str, value: float) -> None:
    with torch.no_grad():
        model.state_dict()[name].reshape(-1)[0] = value


@pytest.mark.parametrize(
    ("section", "name", "value", "said"),
    [
        (LEARNED, "conv1.weight", NAN, "conv1.weight holds nan (1 of 216"),
        (LEARNED, "conv1.weight", INF, "conv1.weight holds inf (1 of 216"),
        (LEARNED, "conv2.bias", INF, "conv2.bias holds inf (1 of 8"),
        (LEARNED, "fc.bias", NAN, "fc.bias holds nan (1 of 5"),
        (LEARNED, "bn1.running_var", NAN, "bn1.running_var holds nan (1 of 8"),
        (LEARNED, "bn1.running_var", -1.0, "bn1.running_var holds -1; it must"),
        (LEARNED, "bn2.running_mean", -INF, "bn2.running_mean holds inf (1 of 8"),
        (LEARNED, "bn2.weight", INF, "bn2.weight holds inf (1 of 8"),
        (LEARNED, "bn2.bias", NAN, "bn2.bias holds nan (1 of 8"),
        (LEARNED, "fc.weight_quantizer.scale", 0.0, "fc.weight_quantizer.scale holds 0; it must"),
        (LEARNED, "fc.weight_quantizer.scale", NAN, "fc.weight_quantizer.scale holds nan"),
        (LEARNED, "fc.weight_quantizer.scale", INF, "fc.weight_quantizer.scale holds inf"),
        (LEARNED, "conv2.input_quantizer.scale", 0.0, "conv2.input_quantizer.scale holds 0; it"),
        (LEARNED, "conv2.input_quantizer.scale", 1e-40, "input_quantizer.scale holds 1e-40; it"),
        (LEARNED, "conv2.input_quantizer.scale", 1e-20, "input_quantizer.scale holds 1e-20; it"),
        (LEARNED, "conv2.input_quantizer.scale", NAN, "conv2.input_quantizer.scale is nan"),
        (OBSERVED, "fc.weight_quantizer.scale", 0.0, "fc.weight_quantizer.scale holds 0; it must"),
        (OBSERVED, "fc.weight_quantizer.scale", -1.0, "fc.weight_quantizer.scale holds -1; it"),
        (OBSERVED, "conv2.input_quantizer.scale", 0.0, "conv2.input_quantizer.scale holds 0; it"),
        (OBSERVED, "conv2.input_quantizer.scale", 1e-40, "input_quantizer.scale holds 1e-40; it"),
        (OBSERVED, "conv2.input_quantizer.zero_point", 16.0, "it must be an integer from 0 to 15"),
        (OBSERVED, "conv2.input_quantizer.zero_point", NAN, "input_quantizer.zero_point is nan"),
        (LEARNED, "conv2.input_quantizer.zero_point", 1.0, "zero_point is 1; it must be 0"),
    ],
)
def test_a_number_without_integers_is_named(section, name, value, said):
    model = qtool.prepare(float_net(), section, IMAGES).eval()
    plant(model, name, value)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConversionError) as caught:
        qtool.convert(model)

    assert said in str(caught.value)
    for key, tensor in before.items():
        if torch.is_tensor(tensor):
            torch.testing.assert_close(model.state_dict()[key], tensor, equal_nan=True)


def test_a_number_that_folding_makes_too_large_is_named_with_its_batch_norm():
    model = qtool.prepare(float_net(), LEARNED, IMAGES).eval()
    plant(model, "bn1.weight", 3e38)
    plant(model, "conv1.weight_quantizer.scale", 1e3)

    with pytest.raises(ConversionError, match=r"conv1: its scale with bn1 folded in holds inf"):
        qtool.convert(model)


def test_a_learned_scale_that_was_thrown_below_zero_converts():
    model = qtool.prepare(float_net(), LEARNED, IMAGES).eval()
    plant(model, "conv2.weight_quantizer.scale", -0.1)

    assert torch.isfinite(qtool.convert(model)(IMAGES)).all()


def test_a_mask_of_infinities_is_no_fault():
    net = float_net()
    net.register_buffer("mask", torch.full((3, 3), -INF).triu(1))
    model = qtool.prepare(net, LEARNED, IMAGES).eval()

    assert torch.isfinite(qtool.convert(model)(IMAGES)).all()
