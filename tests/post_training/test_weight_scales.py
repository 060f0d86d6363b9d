"""Weight scales by what the layer gives, against NumPy and where the best one is known."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qtool.numerics.grid import IntegerGrid
from qtool.numerics.ranges import absmax, mse
from qtool.post_training.gptq import hessian
from qtool.post_training.improve import improve
from qtool.post_training.weight_scales import best_scales, output_errors
from qtool.quantizers.calibrate import calibrate
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.prepare import prepare
from qtool.quantizers.weights import WeightQuantizer
from qtool.settings.tensors import WeightQuantization


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_error_is_that_of_the_outputs(groups: int, bits: int) -> None:
    rows, given, grid = sample(6, 5), sample(40, groups, 5, seed=1), IntegerGrid(bits, "narrow")
    scales = absmax(rows, grid) * 0.7
    found = output_errors(rows, scales, grid, hessian(given).float())
    w, s, x = rows.double().numpy(), scales.double().numpy()[:, None], given.double().numpy()
    rounded = np.clip(np.rint((rows / scales[:, None]).numpy()), grid.qmin, grid.qmax) * s
    for channel in range(6):
        inputs = x[:, channel * groups // 6]
        expected = np.mean((inputs @ (w - rounded)[channel]) ** 2)
        np.testing.assert_allclose(found[channel], expected, rtol=1e-4)


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_no_scale_of_a_rule_gives_better_outputs(bits: int, granularity: str) -> None:
    weight = sample(8, 12)
    given = (sample(500, 1, 12, seed=1) @ sample(12, 12, seed=2)).relu()
    said = {"bits": bits, "granularity": granularity, "range": "calibrated"}
    settings = WeightQuantization.model_validate(said)
    quantizer = WeightQuantizer(settings, weight)
    grid, moments = quantizer.known_grid, hessian(given).float()
    quantizer.scale.data = mse(weight.reshape(quantizer.scale.numel(), -1), grid).reshape(
        quantizer.scale.shape
    )

    def error(scale: Tensor) -> float:
        scales = scale.reshape(-1).expand(8)
        return float(output_errors(weight, scales, grid, moments).sum())

    best = error(best_scales(quantizer, weight, moments))
    largest = absmax(weight.reshape(quantizer.scale.numel(), -1), grid)
    fine = min(error(largest * k / 400) for k in range(20, 401))
    assert best <= error(quantizer.scale)
    if granularity == "per_tensor":
        assert best <= 1.1 * fine
    if bits in (2, 3):
        assert best < 0.95 * error(quantizer.scale)


def test_inputs_that_go_together_forbid_to_saturate() -> None:
    """One weight is large: by itself mse saturates it, what the layer gives does not.

    All inputs are equal, so that the output is the sum of the weights times the input, and only
    the sum of the errors counts: of one large weight and sixty small ones, all alike.
    """
    weight = torch.tensor([[1.0] + [0.21] * 60])
    given = sample(100, 1, 1, seed=3).abs().expand(100, 1, 61)
    settings = WeightQuantization.model_validate({"bits": 4, "range": "mse"})
    quantizer = WeightQuantizer(settings, weight)
    quantizer.fit(weight)
    grid = quantizer.known_grid

    def sum_is_off_by(scale: float) -> float:
        codes = np.clip(np.rint(weight.numpy() / scale), grid.qmin, grid.qmax)
        return abs(float((codes * scale).sum() - weight.numpy().sum()))

    best = float(best_scales(quantizer, weight, hessian(given).float()))
    assert sum_is_off_by(best) < 0.1 * sum_is_off_by(float(quantizer.scale))


class Two(nn.Module):
    """Two linear layers with a ReLU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def test_a_range_that_is_said_keeps_its_scales() -> None:
    torch.manual_seed(0)
    net, batch = Two(), sample(64, 12).relu()
    section = {
        "weights": {"bits": 3},
        "overrides": [{"match": "second", "weights": {"range": "mse"}}],
    }
    model = prepare(net, section, batch, trains=False)
    calibrate(model, [batch])

    def scales() -> dict[str, Tensor]:
        layers = quant_layers(model).items()
        return {n: q.scale.clone() for n, layer in layers if (q := layer.weight_quantizer)}

    before = scales()
    done = improve(model, [batch])
    after = scales()
    assert not torch.equal(before["first"], after["first"])
    assert torch.equal(before["second"], after["second"])
    assert [r.layer for r in done.applied if r.step == "weight_scales"] == ["first"]


@torch.no_grad()
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_whole_method_takes_a_quarter_of_the_error_and_more(bits: int) -> None:
    torch.manual_seed(0)
    net, batch, unseen = Two(), sample(512, 12).relu(), sample(512, 12, seed=9).relu()
    model = prepare(net, {"weights": {"bits": bits}}, batch, trains=False)
    calibrate(model, [batch])
    expected = net(unseen)
    before = float((model.eval()(unseen) - expected).square().mean())
    improve(model, [batch])
    assert float((model(unseen) - expected).square().mean()) < 0.75 * before
