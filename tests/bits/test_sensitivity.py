"""What a width of a layer costs, against networks whose weight is rounded by hand."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qtool.bits.sensitivity import Shown, measure
from qtool.quantizers.calibrate import calibrate
from qtool.quantizers.prepare import prepare
from qtool.settings.quantization import widths_of
from qtool.settings.tensors import WeightQuantization
from tests.bits.test_costs import Tied
from tests.kit import Net, float_net

WEIGHTS = WeightQuantization.model_validate({"bits": 4, "range": "absmax"})
BATCHES = [
    (torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(k)), torch.arange(6) % 5)
    for k in range(2)
]


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Return a weight on a narrow grid per channel whose range is max|w|."""
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.round(weight / scale) * scale


def by_hand(net: Net, x: Tensor, bits: int) -> Tensor:
    """Return what the net says whose conv2 is rounded, with the means of its channels as before."""
    seen = net.bn1(net.conv1(x)).relu()
    exact = net.conv2(seen)
    given = F.conv2d(seen, rounded(net.conv2.weight, bits), net.conv2.bias, 2, 1)
    given = given + (exact - given).mean((0, 2, 3), keepdim=True)
    return net.fc(net.bn2(given).relu().mean((2, 3)))


@torch.no_grad()
def test_a_layer_alone_costs_what_it_does_when_it_is_rounded_by_hand() -> None:
    net = float_net()
    quantization = {
        "weights": WEIGHTS.model_dump(exclude_none=True),
        "activations": {"bits": 4, "range": "min_max"},
    }
    model = prepare(net, quantization, BATCHES[0][0])
    calibrate(model, [images for images, _ in BATCHES])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shown = Shown.of(net, BATCHES, F.cross_entropy)
    found = measure(model, shown, {n: widths_of(WEIGHTS, [2, 5]) for n in ("conv1", "conv2", "fc")})
    assert found.groups == (("conv1",), ("conv2",), ("fc",))
    expected = torch.cat([net(x) for x, _ in BATCHES]).double()
    spread = (expected - expected.mean(0)).square().sum()
    for bits in (2, 5):
        outputs = [by_hand(net, x, bits) for x, _ in BATCHES]
        loss = torch.stack(
            [F.cross_entropy(y, label) for y, (_, label) in zip(outputs, BATCHES, strict=True)]
        )
        error = (torch.cat(outputs).double() - expected).square().sum() / spread
        assert found.alone[1, bits].error == pytest.approx(float(error), rel=1e-4)
        assert found.alone[1, bits].loss == pytest.approx(float(loss.mean()), rel=1e-5)
        assert found.rest[1, bits].error > found.alone[1, bits].error
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(found.alone[n, 5].error < found.alone[n, 2].error for n in range(3))


def test_layers_that_share_a_weight_are_rounded_together() -> None:
    torch.manual_seed(1)
    net, x = Tied().eval(), torch.randn(6, 2, 6, 6)
    quantization = {"weights": {"bits": 4, "range": "absmax"}, "activations": None}
    model = prepare(net, quantization, x)
    shown = Shown.of(net, [(x, torch.arange(6) % 5)], F.cross_entropy)
    names = ("conv", "first", "second")
    found = measure(model, shown, {n: widths_of(WEIGHTS, [3]) for n in names}, ["alone"])
    assert found.groups == (("conv",), ("first", "second"))
    assert found.rest == {}
    only_first = measure(model, shown, {"first": widths_of(WEIGHTS, [3])}, ["alone"])
    assert found.alone[1, 3].error != only_first.alone[0, 3].error
