"""What may explain a difference: coarse gradients beside the loss's own, and what saturates."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.quantizers.layers import quant_layers
from qtool.training.explanation import DIRECTIONS, Explanation, coarse_gradients, cosine, slopes
from tests import kit
from tests.kit import metrics, write_recipe

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(32, 6, generator=GENERATOR)
Y = (X @ torch.randn(6, 1, generator=GENERATOR)).squeeze(1)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.squeeze(1) - targets).square().mean()


def linear(**weights: Any) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 1, bias=False))
    section = {"weights": {"bits": 4, "range": {"name": "fixed", "scale": 0.1}} | weights}
    return qtool.prepare(net, section, X).eval()


def test_slopes_are_those_of_the_quantized_loss_as_numpy_has_it() -> None:
    model, x, y = linear(), X.double().numpy(), Y.double().numpy()
    latent = quant_layers(model)["0"].weight.detach().double().numpy()
    gradients, _ = coarse_gradients(model, (X, Y), squared)
    coarse, own = slopes(model, gradients, (X, Y), squared, seed=7)

    def loss(w: Any) -> float:
        w_hat = np.clip(np.round(w / 0.1), -7, 7) * 0.1
        return float(((x @ w_hat[0] - y) ** 2).mean())

    w_hat = np.clip(np.round(latent / 0.1), -7, 7) * 0.1
    inside = np.abs(latent / 0.1) <= 7
    gradient = 2 * ((x @ w_hat[0] - y)[:, None] * x).mean(0) * inside  # straight_through
    generator = torch.Generator().manual_seed(7)
    for c, d in zip(coarse, own, strict=True):
        z = 0.1 * torch.randn(1, 6, generator=generator).double().numpy()
        assert c == pytest.approx(float((gradient * z).sum()), rel=1e-4, abs=1e-6)
        assert d == pytest.approx(loss(latent + z / 2) - loss(latent - z / 2), rel=1e-3, abs=1e-5)
    assert len(coarse) == DIRECTIONS
    expected = np.corrcoef(np.r_[coarse, -np.array(coarse)], np.r_[own, -np.array(own)])[0, 1]
    assert cosine(coarse, own) == pytest.approx(expected)


def test_the_cosine_tells_a_gradient_that_descends_from_one_that_climbs() -> None:
    model = linear(bits=8, range={"name": "fixed", "scale": 0.01})
    gradients, _ = coarse_gradients(model, (X, Y), squared)
    found = cosine(*slopes(model, gradients, (X, Y), squared, seed=0))
    turned = {name: -gradient for name, gradient in gradients.items()}
    assert found is not None
    assert found > 0.9
    assert cosine(*slopes(model, turned, (X, Y), squared, seed=0)) == pytest.approx(-found)


def test_without_a_gradient_there_is_no_cosine() -> None:
    assert cosine([0.0, 0.0], [1.0, 2.0]) is None
    model = linear()
    for parameter in model.parameters():
        parameter.requires_grad = False
    found = Explanation(model, (X, Y), squared, 0).measures()
    assert found["coarse_gradient_cosine"] is None


@pytest.mark.parametrize("place", ["layer_inputs", "relu_outputs", "every_value"])
def test_the_model_is_left_as_it_is_and_says_what_saturates(place: str) -> None:
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(8) % 5
    weights = {"bits": 4, "range": "dorefa"}
    model = qtool.prepare(
        kit.float_net(),
        {"weights": weights, "activations": {"bits": 2, "range": "absmax", "place": place}},
        images,
    ).train()
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    found = Explanation(model, (images, labels), F.cross_entropy, 0).measures()

    assert model.training
    assert torch.equal(torch.get_rng_state(), random)
    after = model.state_dict()
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, after[name]), name
    shares = found["saturated_activations"]
    assert isinstance(shares, dict)
    assert len(shares) >= 3
    assert all(0 <= share <= 1 for share in shares.values())
    assert isinstance(found["coarse_gradient_cosine"], float)


def test_the_share_that_saturates_is_that_of_the_values_themselves() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    activations = {"bits": 2, "range": {"name": "fixed", "scale": 0.5}, "grid": "full"}
    section = {"activations": activations | {"place": "layer_inputs"}}
    model = qtool.prepare(net, section, X).eval()
    _, shares = coarse_gradients(model, (X, torch.zeros(32).long()), F.cross_entropy)
    steps = X.numpy() / 0.5
    assert shares == {"1": pytest.approx(float(((steps > 1) | (steps < -2)).mean()))}


def test_trials_of_a_comparison_are_looked_at_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qtool.training.explanation.DIRECTIONS", 2)
    path, out = write_recipe(tmp_path, {"training.epochs": 2}), tmp_path / "out"
    argv = ("--estimators", "identity", "--on", "weights", "--seeds", "1", "--output", str(out))
    code, said, err = kit.shell("compare", "estimators", str(path), *argv, "--explain")
    assert code == 0, err
    lines = metrics(out / "identity" / "seed-0")
    result = kit.as_json((out / "comparison.json").read_text())
    (explained,) = result["explained"]
    assert explained["epochs"] == [1, 2]
    cosines = [line["coarse_gradient_cosine"] for line in lines]
    assert explained["measures"]["coarse_gradient_cosine"] == cosines
    for key in ("saturated_activations", "sqnr", "levels_in_use", "flip_ratio", "input_scale"):
        means = [np.mean(list(line[key].values())) for line in lines]
        assert explained["measures"][key] == pytest.approx(means)
    assert "how they trained" in said

    plain = tmp_path / "plain"
    code, said, _ = kit.shell("compare", "estimators", str(path), *argv[:-1], str(plain))
    assert code == 0
    assert "how they trained" not in said
    for line, other in zip(metrics(plain / "identity" / "seed-0"), lines, strict=True):
        assert "coarse_gradient_cosine" not in line
        own = {k: v for k, v in line.items() if k != "seconds"}
        assert own == {k: other[k] for k in own}
