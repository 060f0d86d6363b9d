"""Models prepared with place: every_value: what stands where, and what is done to all of it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.graph.inputs import Inputs
from qtool.graph.sites.frames import sites_of
from qtool.numerics.ranges import RANGES
from qtool.numerics.roundings import ROUNDINGS
from qtool.quantizers.control import (
    begin_step,
    blend_alphas,
    make_traceable,
    set_progress,
    without_blends,
)
from qtool.quantizers.door.deployed import prepared_state, see_deployed
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.sites import SharedSite, SiteQuantizer
from qtool.training.lost import first_constant_layer

IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def section(**activations: Any) -> dict[str, Any]:
    inputs = {"bits": 4, "place": "every_value"} | activations
    return {"weights": {"bits": 4}, "activations": inputs}


class Net(nn.Module):
    """A residual addition, a concatenation, a clip, a hardswish, and an average over the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.mix, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 10)
        self.relu, self.late = nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        y = torch.cat([F.relu6(self.left(x)), self.right(x)], 1)
        y = F.hardswish(self.mix(y))
        y += x
        y = self.late(self.relu(y)).mean((2, 3))
        found: Tensor = self.head(y)
        return found


def prepared(**activations: Any) -> Any:
    torch.manual_seed(0)
    return qtool.prepare(Net(), section(**activations), IMAGES).train()


def at_sites(model: nn.Module) -> dict[str, SiteQuantizer]:
    """Return the quantizers that are a site's own."""
    return {n: s for n, s in sites_of(model).items() if isinstance(s, SiteQuantizer)}


def test_each_value_has_one_quantizer_where_it_is_made() -> None:
    model = prepared()
    sites = sites_of(model)
    forms = {name: stand.form for name, stand in at_sites(model).items()}
    assert forms == {
        ":input0": "free",
        ":relu0": "rectified",
        ":conv2d2": "free",  # right: of the group of the concatenation, where values are negative
        ":conv2d3": "hardswish",
        ":hardswish0": "free",
        ":relu1": "rectified",
        ":conv2d4": "free",
        ":avg_pool0": "free",
    }
    shared = {n: s.quantizer[0].member for n, s in sites.items() if isinstance(s, SharedSite)}
    assert shared == {":clip0": ":conv2d2", ":cat0": ":conv2d2"}
    assert all(stand.ready for stand in at_sites(model).values())
    assert "sites.relu0.scale" in model.state_dict()
    layers = quant_layers(model)
    own = {name for name, layer in layers.items() if layer.input_quantizer is not None}
    assert own == prepared_state(model).placement.requantized
    assert layers["stem"].quantizer_of_input is sites[":input0"]


def test_an_example_is_needed_where_activations_are_quantized() -> None:
    with pytest.raises(ValueError, match=r"every_value needs an example.*layer_inputs"):
        qtool.prepare(Net(), section())
    model = qtool.prepare(Net(), {"weights": {"bits": 4}, "activations": None})
    assert not sites_of(model)


def test_every_scale_but_the_images_learns_and_a_training_step_moves_them() -> None:
    model = prepared()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        assert all(g is not None and g.isfinite().all() for g in grads.values())
        optimizer.step()
    scales = {name: stand.scale for name, stand in at_sites(model).items()}
    fixed = {name for name, scale in scales.items() if not scale.requires_grad}
    assert fixed == {":conv2d3", ":input0"}


@pytest.mark.parametrize("range_", ["learned", "ema_min_max"])
def test_copies_and_pickles_go_on_by_themselves(range_: str) -> None:
    model = prepared(range=range_)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(model.eval()(IMAGES), twin.eval()(IMAGES))
        for name, stand in sites_of(twin).items():
            if isinstance(stand, SharedSite):
                assert stand.quantizer[0] is sites_of(twin)[stand.quantizer[0].member], name
        assert quant_layers(twin)["stem"].quantizer_of_input is sites_of(twin)[":input0"]
        twin.train()
        before = copy.deepcopy(model.state_dict())
        twin(IMAGES * 3).sum().backward()
        after = model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_states_are_taken_over_by_name() -> None:
    model, other = prepared(range="ema_min_max"), prepared(range="ema_min_max")
    for _ in range(3):
        model.zero_grad()
        model(IMAGES * 2)
    assert not torch.equal(model.eval()(IMAGES), other.eval()(IMAGES))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(IMAGES), other.eval()(IMAGES))


def test_calibrate_sets_the_range_of_a_group_from_all_of_it() -> None:
    model = prepared(range="min_max")
    seen: list[Tensor] = []
    model.left.register_forward_hook(lambda m, a, y: seen.append(y))
    model.right.register_forward_hook(lambda m, a, y: seen.append(y))
    for layer in quant_layers(model).values():
        layer.weight_quantizer = None
    qtool.calibrate(model.eval(), [IMAGES, IMAGES * 2])
    stand = at_sites(model)[":conv2d2"]
    seen = [y.clamp(0, 6) if n % 2 == 0 else y for n, y in enumerate(seen)]
    low, high = min(float(y.min()) for y in seen), max(float(y.max()) for y in seen)
    grid = stand.known_grid
    if grid.kind == "asymmetric":
        assert float(stand.scale) == pytest.approx((high - low) / 255, rel=1e-5)
    else:
        assert float(stand.scale) == pytest.approx(max(-low, high) / grid.qmax, rel=1e-5)


class _Apart(nn.Module):
    """A layer that training alone calls, and a block whose result it drops at random."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.helper, self.head = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        y = F.relu(self.second(x))
        if self.training:
            y = y + F.relu(self.helper(x))
        return self.head(y.mean((2, 3)))


def test_what_training_alone_calls_has_quantizers_of_its_own() -> None:
    for training in (True, False):
        model = qtool.prepare(_Apart().train(training), section(), IMAGES)
        helper = quant_layers(model)["helper"]
        assert helper.input_quantizer is not None
        assert helper.source == ()
        assert "helper" not in prepared_state(model).placement.layers
        for mode in (True, False, True):
            model.train(mode)(IMAGES)
        told = see_deployed(copy.deepcopy(model).eval(), Inputs.of(IMAGES))
        assert "helper" in told.left_float
        assert set(told.left_float) == {"helper"}


def test_a_released_layer_leaves_the_calls_as_they_are() -> None:
    model = qtool.prepare(_Apart().train(), section(), IMAGES)
    twin = copy.deepcopy(model).eval()
    see_deployed(twin, Inputs.of(IMAGES))
    assert type(twin.helper).__name__ == "Conv2d"
    assert torch.equal(twin(IMAGES), model.eval()(IMAGES))
    twin.train()(IMAGES)


def test_health_looks_at_every_value_by_its_site() -> None:
    model = prepared(bits=8).eval()
    assert qtool.health(model, IMAGES) == []
    model.norm.bias.data[:3] = -50  # behind the ReLU
    model.right.weight.data.zero_()  # one of two that share a scale
    model.right.bias.data.zero_()
    at_sites(model)[":avg_pool0"].scale.data.fill_(1e-9)
    found = {(finding.layer, finding.kind) for finding in qtool.health(model, IMAGES)}
    assert (":relu0", "dead_channels") in found
    assert (":conv2d2", "all_zero") in found
    assert (":clip0", "all_zero") not in found
    assert (":avg_pool0", "scale_at_floor") in found


def test_what_looks_at_layers_meanwhile_calls_nothing_of_the_model() -> None:
    model = prepared().eval()
    model.mix.weight.data.zero_()
    told, layer = first_constant_layer(model, IMAGES)
    assert layer is model.mix
    assert "mix (all of its codes are 0" in told


RANGES_HERE = [name for name in RANGES.names() if RANGES.facts(name).serves("activations")]
NEEDED = {"fixed": {"scale": 0.05}}
FEW_CHOICES = [
    *({"range": {"name": name} | NEEDED.get(name, {})} for name in RANGES_HERE),
    *({"rounding": name} for name in ROUNDINGS.names()),
    {"blend": {"name": "linear", "start": 0.0, "stop": 1.0}, "range": "absmax"},
    {"bits": 1, "grid": "unsigned"},
    {"bits": 8, "grid": "asymmetric", "range": "min_max"},
    {"scale_gradient": "chain_rule", "estimator": "hyperbolic_tangent"},
]


@pytest.mark.parametrize("choice", FEW_CHOICES, ids=str)
def test_every_choice_trains_at_sites(choice: dict[str, Any]) -> None:
    model = prepared(**choice)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for progress in (0.0, 0.5, 1.0):
        set_progress(model, progress)
        optimizer.zero_grad()
        model(IMAGES).square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
    with torch.no_grad(), without_blends(model):
        assert model.eval()(IMAGES).isfinite().all()
    alphas = blend_alphas(model)
    assert bool(alphas) == ("blend" in choice)
    assert all(alpha == 1 for alpha in alphas.values())
    if alphas:
        assert "sites.relu0" in alphas


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["clipped_relu", "magnitude_aware"])
def test_compiled_steps_are_those_of_the_plain_model(estimator: str) -> None:
    model = prepared(estimator=estimator, range="ema_min_max")
    twin = copy.deepcopy(model)
    make_traceable(twin)
    forward = torch.compile(twin.forward, backend="eager", fullgraph=True)
    for _ in range(2):
        for one in (model, twin):
            begin_step(one)
        torch.testing.assert_close(model(IMAGES), forward(IMAGES), rtol=1e-3, atol=1e-3)
    for name, stand in at_sites(model).items():
        torch.testing.assert_close(stand.scale, at_sites(twin)[name].scale)
        assert stand.observer.steps == 2
