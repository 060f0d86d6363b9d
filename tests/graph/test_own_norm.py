"""A batch norm that is an activation, too, becomes what the two are as modules of their own."""

import copy
import pickle
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qtool
from qtool.conversion.report import conversion_report
from qtool.graph.own_norm import NORM, OwnNorm
from qtool.integer.file import load_integer, save_integer
from qtool.quantizers.door.deployed import prepared_state

RECIPE = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "every_value"}}


class NormAct(nn.BatchNorm2d):
    """A batch norm with an activation behind it, which computes the norm by its function."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training,
            self.momentum, self.eps,
        )  # fmt: skip
        return self.act(x)


class CallsSuper(nn.BatchNorm2d):
    """One without parts, which calls the forward of its base."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class InOne(nn.Module):
    """Convolutions with norms that are activations; the last norm reads a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), NormAct(8, nn.ReLU())
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), NormAct(8, nn.SiLU())
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, padding=1, bias=False), CallsSuper(8)
        self.bn4, self.conv4 = NormAct(8, nn.Identity()), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.conv2(x)) + x
        x = self.bn3(self.conv3(x)) + self.bn4(x)
        return self.head(self.conv4(x).relu().mean((2, 3)))


class Apart(InOne):
    """The same network with torch's own norms, and its activations beside them."""

    def __init__(self) -> None:
        super().__init__()
        for number in range(1, 5):
            setattr(self, f"bn{number}", nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.silu(self.bn2(self.conv2(x))) + x
        x = F.relu(self.bn3(self.conv3(x))) + self.bn4(x)
        return self.head(self.conv4(x).relu().mean((2, 3)))


def images(seed: int) -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def trained(kind: type[InOne]) -> tuple[nn.Module, list[float]]:
    """Return a prepared network after two steps, and their losses."""
    torch.manual_seed(0)
    state = InOne().state_dict()
    model = kind()
    model.load_state_dict(state)
    model = qtool.prepare(model, RECIPE, example=images(0)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for seed in (1, 2):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images(seed)), torch.arange(8) % 5)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


@pytest.fixture(scope="module")
def in_one() -> tuple[nn.Module, list[float]]:
    return trained(InOne)


@pytest.fixture(scope="module")
def apart() -> tuple[nn.Module, list[float]]:
    return trained(Apart)


def test_it_trains_as_the_norm_and_the_activation_apart_do(in_one, apart) -> None:
    assert in_one[1] == apart[1]
    placed = [prepared_state(model).placement for model, _ in (in_one, apart)]
    assert len(placed[0].sites) == len(placed[1].sites)
    assert [j.kind for j in placed[0].joins.values()] == [j.kind for j in placed[1].joins.values()]


def test_it_is_folded_as_they_are(in_one, apart) -> None:
    one, two = (qtool.convert(model) for model, _ in (in_one, apart))
    assert torch.equal(one(images(3)), two(images(3)))
    assert one.qtool.not_folded == two.qtool.not_folded == {}
    assert [layer.batch_norm for layer in one.qtool.layers] == [
        f"bn1.{NORM}", f"bn2.{NORM}", f"bn3.{NORM}", None, None,
    ]  # fmt: skip
    stored = {name for name in one.state_dict() if name.startswith("bn") and "sites" not in name}
    assert stored == {f"bn4.{name}" for name in InOne().bn4.state_dict()}


def test_a_report_names_norms_as_the_network_has_them(in_one, tmp_path: Path) -> None:
    model = in_one[0]
    batches = [(images(3), torch.arange(len(images(3))) % 5)]
    path = tmp_path / "integer.safetensors"
    report = conversion_report(
        model, qtool.convert(model), lambda: batches, F.cross_entropy, path=path
    )
    assert [layer.batch_norm for layer in report.layers] == ["bn1", "bn2", "bn3", None, None]
    assert "bn4" in [site.norm for site in report.sites]
    assert NORM not in str(report.to_json())


def test_names_of_tensors_stay_those_of_the_network(in_one) -> None:
    model, _ = in_one
    own = [key for key in model.state_dict() if "quantizer" not in key and "sites" not in key]
    assert own == list(InOne().state_dict())
    InOne().load_state_dict({key: model.state_dict()[key] for key in own})
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_shares_tensors_within_itself_alone(in_one, how) -> None:
    model, _ = in_one
    made = how(model)
    norm, owner = made.bn1.get_submodule(NORM), made.bn1
    assert isinstance(norm, OwnNorm)
    assert norm.get_buffer("running_mean") is owner.running_mean
    assert owner.running_mean is not model.bn1.running_mean
    made.double()
    assert norm.get_buffer("running_var") is owner.running_var
    assert owner.weight.dtype == torch.float64


def test_the_integer_file_and_the_exported_file_say_the_same(in_one, tmp_path: Path) -> None:
    integer = qtool.convert(in_one[0])
    save_integer(integer, tmp_path / "integer.safetensors", {})
    loaded = load_integer(tmp_path / "integer.safetensors", InOne())
    with torch.no_grad():
        expected = integer(images(3))
        assert torch.equal(loaded(images(3)), expected)
    qtool.export_onnx(loaded, images(0), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (given,) = session.run(None, {session.get_inputs()[0].name: images(3).numpy()})
    assert torch.allclose(torch.from_numpy(given), expected, atol=1e-5)


def test_a_norm_that_gives_others_statistics_stays_as_it_is() -> None:
    class Shifted(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            mean = self.running_mean + 1
            return F.batch_norm(x, mean, self.running_var, self.weight, self.bias).relu()

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Shifted(4), nn.Conv2d(4, 4, 3)).eval()
    prepared = qtool.prepare(model, RECIPE, example=images(0))
    assert not any(isinstance(module, OwnNorm) for module in prepared.modules())
    assert list(prepared_state(prepared).not_folded) == ["1"]
