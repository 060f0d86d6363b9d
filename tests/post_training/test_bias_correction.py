"""Bias correction: every layer's output has the mean that it has in the float network."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from qtool.graph.inputs import Inputs
from qtool.post_training.improve import improve
from qtool.post_training.outputs import (
    AT_ONCE,
    by_channel,
    channel_means,
    float_outputs,
    places,
    places_of,
)
from qtool.post_training.walk import called_once, in_one, walk
from qtool.quantizers.calibrate import calibrate
from qtool.quantizers.control import in_float
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.prepare import prepare
from tests.kit import Net, float_net
from tests.post_training.kit import only_layer

TWO_BITS = {"weights": {"bits": 2}, "activations": {"bits": 2}}


def images(count: int = 64, seed: int = 1) -> Tensor:
    """Return images [B, 3, 8, 8] that are not centered at zero."""
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + 0.5


def calibrated(net: nn.Module, settings: Mapping[str, object], batch: Tensor) -> nn.Module:
    """Return a prepared and calibrated model in evaluation mode."""
    model = prepare(net, settings, batch)
    calibrate(model, [batch])
    return model.eval()


def means(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Return the mean output of each layer's channels, as the model computes now."""
    found: dict[str, Tensor] = {}

    def look(name: str, layer: QuantLayer, x: Tensor) -> None:
        x, weight = layer.quantized_operands(x)
        y = layer.of_operands(x, weight)
        found[name] = y.mean([d for d in range(y.ndim) if d != 1])
        norm = {"conv1": "bn1", "conv2": "bn2"}.get(name)
        if norm is not None:  # a shift may be the norm's
            found[name] = found[name] - model.get_buffer(f"{norm}.running_mean")

    walk(model, Inputs.of(batch), look)
    return found


@pytest.mark.parametrize("place", ["every_value", "layer_inputs"])
def test_every_layer_has_the_mean_of_the_float_network(place: str) -> None:
    batch = images()
    settings = {"weights": {"bits": 2}, "activations": {"bits": 2, "place": place}}
    model = calibrated(float_net(), settings, batch)
    with in_float(model):
        expected = means(model, batch)
    before = means(model, batch)
    improve(model, [batch])
    after = means(model, batch)
    assert max(float((before[n] - expected[n]).abs().max()) for n in expected) > 0.05
    for name, mean in expected.items():
        torch.testing.assert_close(after[name], mean, rtol=0, atol=2e-5)


def test_in_float_the_model_is_the_network_that_it_was_made_of() -> None:
    net, batch = float_net(), images()
    model = calibrated(net, TWO_BITS, batch)
    with in_float(model):
        torch.testing.assert_close(model(batch), net(batch), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(batch), net(batch), atol=1e-2)


class NoBias(nn.Module):
    """A layer without a bias and without a norm behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def test_a_layer_without_bias_or_norm_gets_a_bias() -> None:
    batch = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 1
    net = NoBias()
    model = calibrated(net, {"weights": {"bits": 2}}, batch)
    improve(model, [batch])
    torch.testing.assert_close(model(batch).mean(0), net(batch).mean(0), rtol=0, atol=1e-5)


def test_what_was_done_says_the_error_before_and_after() -> None:
    batch = images()
    model = calibrated(float_net(), TWO_BITS, batch)
    done = improve(model, [batch[:40], batch[40:]])
    assert done.method == "default"
    assert done.images == 64
    corrected = [row for row in done.applied if row.step == "bias_correction"]
    assert [row.layer for row in corrected] == ["conv1", "conv2", "fc"]
    for row in corrected:
        assert row.error_before is not None
        assert row.error_after is not None
        assert 0 < row.error_after < row.error_before


def test_an_error_is_the_share_of_the_spread_that_is_wrong() -> None:
    batch = images(16)
    model = calibrated(float_net(), TWO_BITS, batch)
    expected = float_outputs(model, Inputs.of(batch), called_once(model))["fc"]
    assert expected.error(expected.rows) == 0
    only_means = expected.mean.float().expand_as(expected.rows)
    assert expected.error(only_means) == pytest.approx(1, abs=1e-5)


def test_batches_become_one_of_so_many_elements() -> None:
    batches = [Inputs.of(images(10, seed)) for seed in range(3)]
    whole = in_one(batches)
    assert torch.equal(whole.tensors[0], torch.cat([b.tensors[0] for b in batches]))
    some = in_one(batches, elements=15 * 3 * 8 * 8)
    assert torch.equal(some.tensors[0], whole.tensors[0][:15])


def test_outputs_are_rows_by_channel() -> None:
    model = calibrated(Net().eval(), TWO_BITS, images(2))
    y = torch.arange(2 * 8 * 3 * 3.0).reshape(2, 8, 3, 3)
    rows = by_channel(quant_layers(model)["conv1"], y)
    assert torch.equal(rows[9 + 4], y[1, :, 1, 1])
    assert len(places(100)) == 100
    assert len(places(10**6)) == 4096


@pytest.mark.parametrize(
    ("layer", "shape", "most"),
    [
        (nn.Conv2d(16, 16, 3), (1, 16, 8, 8), 16384),
        (nn.Conv2d(64, 128, 3, padding=1), (1, 64, 8, 8), 2**23 // (64 * 9)),
        (nn.Conv2d(64, 64, 3, padding=1, groups=64), (1, 64, 8, 8), 2**23 // (64 * 9)),
        (nn.Conv2d(16, 1024, 1), (1, 16, 8, 8), 2**23 // 1024),
        (nn.Linear(4608, 10), (1, 4608), 4096),
    ],
)
def test_a_layer_is_improved_by_as_many_outputs_as_its_size_allows(
    layer: nn.Module, shape: tuple[int, ...], most: int
) -> None:
    made, _ = only_layer(layer, torch.randn(shape))
    assert len(places_of(made, 10**6)) == most
    assert len(places_of(made, 100)) == 100


def test_means_are_those_of_all_rows_in_float64() -> None:
    rows = torch.randn(2 * AT_ONCE + 5, 3, generator=torch.Generator().manual_seed(0)) + 100
    assert torch.allclose(channel_means(rows), rows.double().mean(0), rtol=1e-14, atol=0)
    assert torch.equal(channel_means(rows[:7]), rows[:7].double().sum(0) / 7)
