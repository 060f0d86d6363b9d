"""Training under bfloat16 autocast: what is exactly as in float32, and what is only close to it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.layers import QuantLayer, make_quant_layer
from qtool.quantizers.weights import WeightQuantizer
from qtool.settings.tensors import ActivationQuantization, WeightQuantization
from tests import kit

DIGITS = Path(__file__).parents[2] / "recipes" / "digits.yaml"
BITS = (2, 4, 8)
PRECISIONS = [torch.float32, torch.bfloat16]
each_precision = pytest.mark.parametrize("precision", PRECISIONS, ids=str)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def of_weights(weight: Tensor, **settings: Any) -> WeightQuantizer:
    return WeightQuantizer(WeightQuantization.model_validate(settings), weight)


def of_inputs(first: Tensor, **settings: Any) -> ActivationQuantizer:
    made = ActivationQuantizer(ActivationQuantization.model_validate(settings))
    made(first)
    return made


def codes(x_hat: Tensor, scale: Tensor) -> Tensor:
    """Return the integers behind x_hat; bfloat16 moves the largest, 255, by less than a half."""
    return torch.round(x_hat.float() / scale)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_weights_that_bfloat16_holds_get_the_codes_of_float32(bits: int, granularity: str) -> None:
    weight = randn(6, 3, 5, 5).bfloat16()
    made = of_weights(weight, bits=bits, granularity=granularity, range="absmax").eval()
    assert torch.frexp(made.scale)[0].ne(0.5).all()  # no power of two
    plain, half = made(weight.float()), made(weight)
    assert torch.equal(codes(half, made.scale), codes(plain, made.scale))
    assert torch.equal(half, plain.bfloat16())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("range_", ["learned", "absmax"])
def test_inputs_that_bfloat16_holds_get_the_codes_of_float32(
    bits: int, signed: bool, range_: str
) -> None:
    x = randn(8, 3, 9, 9).bfloat16()
    x = x if signed else x.abs()
    made = of_inputs(x.float(), bits=bits, range=range_).eval()
    assert torch.frexp(made.scale)[0] != 0.5
    plain, half = made(x.float()), made(x)
    assert len(codes(plain, made.scale).unique()) > 2
    assert torch.equal(codes(half, made.scale), codes(plain, made.scale))
    assert torch.equal(half, plain.bfloat16())


def layer_with_codes(kind: type[nn.Module], scale: float) -> tuple[QuantLayer, Tensor]:
    """Return a layer and an input whose values are small integers times a scale.

    Weights are -1, 0 and 1, inputs 0 to 3: each sum of 27 products, and each part of it, is an
    integer of at most 81, which the 8 significant bits of bfloat16 hold.
    """
    maker: Any = kind
    layer = maker(3, 4, 3, bias=False) if kind is nn.Conv2d else maker(27, 4, bias=False)
    shape = (2, 3, 6, 6) if kind is nn.Conv2d else (5, 27)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-1, 2, layer.weight.shape, generator=generator).float()
    x = torch.randint(0, 4, shape, generator=generator).float() * scale
    layer.weight.data = weight * scale
    made = make_quant_layer(
        layer,
        WeightQuantization.model_validate({"bits": 8, "granularity": "per_tensor"}),
        ActivationQuantization.model_validate({"bits": 8}),
    )
    assert made.weight_quantizer is not None
    assert made.input_quantizer is not None
    made(x)  # sets the grid
    made.weight_quantizer.scale.data.fill_(scale)
    made.input_quantizer.scale.data.fill_(scale)
    return made.eval(), x


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Linear])
def test_small_integers_times_a_power_of_two_give_exactly_what_float32_gives(
    kind: type[nn.Module],
) -> None:
    layer, x = layer_with_codes(kind, 0.125)
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    assert plain.abs().max() > 5 * 0.125**2
    assert torch.equal(half.float(), plain)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Linear])
def test_other_scales_give_what_float32_gives_to_three_roundings_of_bfloat16(
    kind: type[nn.Module],
) -> None:
    """Codes are equal, but code * scale is rounded to 8 bits on both sides, and so is the sum."""
    layer, x = layer_with_codes(kind, 0.1)
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x).float()
    operands = [t.abs() for t in layer.quantized_operands(x)]
    apply = F.conv2d if kind is nn.Conv2d else F.linear
    assert not torch.equal(half, plain)
    assert ((half - plain).abs() <= 3 * 2**-8 * apply(*operands)).all()


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.Linear])
def test_weights_and_scales_learn_in_float32(kind: type[nn.Module]) -> None:
    layer, x = layer_with_codes(kind, 0.1)
    x = x + 0.03  # off the levels, where a scale has something to learn
    layer.weight.data.add_(0.03)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer.train()(x.bfloat16())
    out.float().square().sum().backward()
    found = {name: p.grad for name, p in layer.named_parameters()}
    assert {"weight", "weight_quantizer.scale", "input_quantizer.scale"} == set(found)
    for name, grad in found.items():
        assert grad is not None, name
        assert grad.dtype == torch.float32, name
        assert torch.isfinite(grad).all(), name
        assert grad.abs().max() > 0, name


@each_precision
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"range": "ema_min_max", "grid": "asymmetric"},
        {"range": "learned", "grid": "asymmetric"},
        {"range": "pact", "grid": "unsigned", "estimator": "clipped_relu"},
        {"range": "absmax", "blend": {"name": "linear", "start": 0.5, "stop": 1.0}},
        {"rounding": "additive_noise", "grid": "full"},
    ],
    ids=str,
)
def test_quantizers_of_inputs_keep_channels_last(
    settings: dict[str, Any], precision: torch.dtype
) -> None:
    images = randn(4, 6, 5, 5).to(memory_format=torch.channels_last)
    made = of_inputs(images, bits=4, **settings).train()
    x = images.to(precision).requires_grad_()
    found, seen = made(x), []
    x.register_hook(seen.append)
    grad = randn(4, 6, 5, 5, seed=1).to(precision, memory_format=torch.channels_last)
    found.backward(grad)
    assert found.dtype == seen[0].dtype == precision
    assert found.stride() == x.stride() == seen[0].stride()


@each_precision
@pytest.mark.parametrize("place", ["layer_inputs", "relu_outputs"])
def test_a_quantized_network_keeps_channels_last(place: str, precision: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    images = randn(4, 3, 9, 9).to(memory_format=torch.channels_last)
    net = net.to(memory_format=torch.channels_last)
    section = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": place}}
    model = qtool.prepare(net, section, images).train()
    found: dict[str, Tensor] = {}

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            found[name] = output
            output.register_hook(lambda grad: found.update({f"gradient of {name}": grad}))

        return hook

    names = [n for n, m in model.named_modules() if n and "tracker" not in n]
    for name in names:
        model.get_submodule(name).register_forward_hook(look(name))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        out = model(images)
    out.backward(torch.empty_like(out).copy_(randn(*out.shape, seed=1)))
    called = [n for n in names if n in found]
    assert any("quantizer" in name for name in called)
    for name in [*called, *(f"gradient of {n}" for n in called)]:
        assert found[name].is_contiguous(memory_format=torch.channels_last), name


def first_losses(precision: str, steps: int, folder: Path) -> list[float]:
    """Return the first losses of the digits recipe with a small network."""
    keys = ["model.name=lenet5", "quantization.overrides=[]", f"training.precision={precision}"]
    keys += ["training.learning_rate=0.1", "data.batch_size=32"]
    return kit.first_losses(DIGITS, keys, steps, folder)


def test_digits_train_in_bfloat16_as_in_float32(tmp_path: Path) -> None:
    plain, half = (first_losses(precision, 40, tmp_path) for precision in ("float32", "bfloat16"))
    assert torch.isfinite(torch.tensor(half)).all()
    assert plain != half
    assert half == pytest.approx(plain, rel=0.05)
