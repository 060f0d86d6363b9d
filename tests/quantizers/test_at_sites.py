"""Quantizers that stand at the calls of a model, put there by hand."""

import copy
import pickle

import torch
from torch import Tensor, nn

import qtool
from qtool.graph.recorder import Watched, record_forward
from qtool.graph.recording import Recording
from qtool.graph.sites.call_sites import CallSite
from qtool.graph.sites.frames import install
from qtool.quantizers.control import begin_step
from qtool.quantizers.layers import QuantLayer, make_quant_layer
from qtool.quantizers.relu import QuantReLU
from qtool.quantizers.sites import SiteQuantizer, quantizer_of, stands_at_sites
from qtool.settings.tensors import ActivationQuantization, WeightQuantization

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
WEIGHTS = WeightQuantization.model_validate({"bits": 4})


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.fc = nn.Conv2d(3, 8, 3), _Block(), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.block(self.stem(x)).mean((2, 3)))
        return y


def made() -> tuple[nn.Module, dict[str, SiteQuantizer]]:
    """Return a network with quantizers at its sites, and those."""
    torch.manual_seed(0)
    model = _Net()
    for module in list(model.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            make_quant_layer(module, WEIGHTS, None)
    sites = [
        CallSite("", "input", 0),
        CallSite("", "conv2d", 0, "stem"),
        CallSite("block", "relu", 0, "block.relu"),
        CallSite("block", "batch_norm", 1, "block.bn2"),
        CallSite("block", "relu", 1, "block.relu", 1),
        CallSite("", "avg_pool", 0),
    ]
    settings = ActivationQuantization.model_validate({"bits": 8})
    stands = {site: SiteQuantizer(settings, site.function) for site in sites}
    block = {("block.relu", "relu"): 2, ("block.bn1", "batch_norm"): 1}
    block |= {("block.bn2", "batch_norm"): 1}
    root = {("stem", "conv2d"): 1, ("", "avg_pool"): 1}
    found = {str(site): stand for site, stand in stands.items()}
    found["block:batch_norm1"].overwritten = True
    install(model, stands, {"": (root,), "block": (block,)})
    return model, found


def recorded(model: nn.Module, *layers: type[nn.Module]) -> Recording:
    return record_forward(model.eval(), Watched(layers, (QuantReLU,)), IMAGES)


def test_a_recording_tells_the_same_of_a_model_with_sites() -> None:
    told, plain = recorded(made()[0], QuantLayer), recorded(_Net(), nn.Conv2d, nn.Linear)
    assert told.norms == plain.norms
    assert {norm.layer for norm in told.norms} == {"block.conv1", "block.conv2"}
    assert told.feeds == plain.feeds
    assert told.calls == plain.calls
    assert told.may_be_norms == plain.may_be_norms


class _Sums(_Block):
    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)) + y)
        made: Tensor = self.conv3(y)
        return made


def test_what_only_a_sum_reads_is_rounded_again_instead_of_kept() -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 8, 6, 6)
    section = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "every_value"}}
    model = qtool.prepare(_Sums(), section, images).train()
    sites = {name: quantizer_of(stand) for name, stand in stands_at_sites(model).items()}
    unkept = [quantizer for quantizer in sites.values() if quantizer.unkept]
    assert [name for name, q in sites.items() if q.unkept] == ["sites.batch_norm1"]
    found = []
    for again in (True, False):
        unkept[0].unkept = again
        kept: set[int] = set()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.add(t.untyped_storage().data_ptr()) or t, lambda t: t
        ):
            out = model(images)
        model.zero_grad()
        out.square().sum().backward()
        found.append((len(kept), [p.grad for p in model.parameters()]))
    (fewer, ours), (more, plain) = found
    assert fewer == more - 1
    assert all(torch.equal(*pair) for pair in zip(ours, plain, strict=True))


def test_a_value_that_is_added_to_in_place_does_not_hinder_the_scale() -> None:
    model, stands = made()
    model(IMAGES)
    grads = []
    for apart in (False, True):
        if apart:
            kept = stands["block:batch_norm1"]
            kept.register_forward_hook(lambda module, args, output: output.clone())
            kept.overwritten = False
        model.zero_grad()
        model(IMAGES).square().sum().backward()
        found = {name: stand.scale.grad for name, stand in stands.items()}
        grads.append({name: grad.clone() for name, grad in found.items() if grad is not None})
    assert grads[0].keys() == stands.keys()
    assert all(grad != 0 for grad in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-6)


def test_models_with_sites_are_copied_pickled_and_compiled() -> None:
    model, _ = made()
    model(IMAGES)
    begin_step(model)
    traced = torch.compile(model, backend="eager", fullgraph=True)
    twin, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    given = model(IMAGES)
    assert torch.equal(given, twin(IMAGES))
    assert torch.equal(given, pickled(IMAGES))
    assert torch.equal(given, traced(IMAGES))
