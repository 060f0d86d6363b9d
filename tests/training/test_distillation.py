"""What a teacher adds to the loss: formulas in NumPy, and steps that hold to them."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.errors import TrainingError
from qtool.models.papers import MODELS, lenet5
from qtool.training.compiled import compiled_forward
from qtool.training.distillation import Distillation, feature_distance, softened_divergence
from qtool.training.features import Outputs, block_names
from qtool.training.losses import LOSSES
from qtool.training.optimizers import parameter_groups
from qtool.training.replicas import Replicas
from qtool.training.sharpness import Sharpness
from qtool.training.step import TrainingStep
from qtool.world.group import Group
from qtool.world.world import ALONE, World
from tests.training.several import in_processes

SHARE = 0.3
TAUGHT_BY: dict[str, dict[str, Any]] = {
    "kl": {"temperature": 2.5},
    "features": {"blocks": ["blocks.0", "blocks.1"]},
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def divergence(logits: np.ndarray, taught: np.ndarray, temperature: float) -> float:
    own, wanted = log_softmax(logits / temperature), log_softmax(taught / temperature)
    return float(temperature**2 * (np.exp(wanted) * (wanted - own)).sum(1).mean())


def distance(own: np.ndarray, taught: np.ndarray) -> float:
    """Return the mean squared error of outputs that are divided by their root mean square."""
    one, two = (x.reshape(len(x), -1) for x in (own, taught))
    one, two = (x / np.sqrt((x**2).mean(1, keepdims=True)) for x in (one, two))
    return float(((one - two) ** 2).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_softened_outputs_part_by_t_squared_times_their_divergence(temperature: float) -> None:
    logits, taught = drawn(7, 5).requires_grad_(), 3 * drawn(7, 5, seed=1)
    found = softened_divergence(logits, taught, temperature)
    expected = divergence(logits.detach().numpy(), taught.numpy(), temperature)
    assert found.item() == pytest.approx(expected, rel=1e-12)
    found.backward()
    q, p = (np.exp(log_softmax(x.detach().numpy() / temperature)) for x in (logits, taught))
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad, temperature * (q - p) / len(q), atol=1e-12)


def test_blocks_part_by_the_squared_error_of_outputs_whose_mean_square_is_one() -> None:
    own = [drawn(6, 3, 4, 4), drawn(6, 8, seed=1)]
    taught = [drawn(6, 3, 4, 4, seed=2), 5 * drawn(6, 8, seed=3)]
    found = feature_distance(own, taught)
    pairs = zip(own, taught, strict=True)
    expected = np.mean([distance(one.numpy(), two.numpy()) for one, two in pairs])
    assert float(found) == pytest.approx(expected, rel=1e-6)  # float32
    assert float(feature_distance(own, [2 * own[0], own[1]])) == pytest.approx(0, abs=1e-6)


class Block(nn.Module):
    """A convolution, a norm and a ReLU, which what comes next overwrites."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4, 3, padding=1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.conv(x).relu()).add(0.5)


class Net(nn.Module):
    """Two blocks, the outputs of which are added to in place, and a head: [B, 3, H, W] to 5."""

    def __init__(self, *, drops: bool = False) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(3), Block(4))
        if not drops:
            for block in self.blocks:
                block.drop = nn.Identity()
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            x += 1
        return self.fc(x.mean((2, 3)))


def net(seed: int, *, drops: bool = False) -> Net:
    torch.manual_seed(seed)
    return Net(drops=drops).double()


def test_blocks_are_the_outermost_members_of_lists_with_modules_of_their_own() -> None:
    each = [f"layer{stage}.{place}" for stage in (1, 2, 3) for place in range(3)]
    assert block_names(MODELS["resnet20"](10, 3, 32)) == each
    assert block_names(Net()) == ["blocks.0", "blocks.1"]
    assert block_names(nn.ModuleDict({"all": nn.Sequential(Net())})) == ["all.0"]


def test_a_network_without_blocks_is_made_of_its_layers_but_the_last() -> None:
    assert block_names(lenet5(10, 1, 16)) == ["conv1", "conv2", "fc1", "fc2"]
    assert block_names(nn.Sequential(nn.Linear(2, 3))) == []


def test_what_a_block_returns_is_kept_as_it_was_and_hooks_are_taken_away() -> None:
    network, x = net(0), drawn(2, 3, 5, 5)
    outputs = Outputs(["blocks.0"])
    with outputs.watching(network):
        network(x)
    assert torch.equal(outputs.seen["blocks.0"], network.blocks[0](x))
    assert not network.blocks[0]._forward_hooks


class Taught:
    """A student, and a teacher that notes what it is given."""

    def __init__(self, how: str, **step: Any) -> None:
        self.student, self.teacher = net(1), net(2, drops=True)
        self.given: list[Tensor] = []
        self.teacher.register_forward_pre_hook(lambda _, args: self.given.append(args[0]))
        self.distillation = Distillation(self.teacher, share=SHARE, **TAUGHT_BY[how])
        optimizer = torch.optim.SGD(self.student.parameters(), lr=0.0)
        self.step = TrainingStep(self.student, LOSSES["cross_entropy"], optimizer, **step)
        self.step.distillation = self.distillation

    def expected(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Return the recipe's loss, and what the teacher says, of passes of their own."""
        names = TAUGHT_BY[list(TAUGHT_BY)[bool(self.distillation.blocks)]].get("blocks", [])
        said, logits = [], []
        for network in (self.student, self.teacher):
            network = network.eval()
            outputs = Outputs(names)
            with torch.no_grad(), outputs.watching(network):
                logits.append(network(images).float().double().numpy())
            said.append([outputs.seen[name].numpy() for name in names])
        label = cross_entropy(logits[0], labels.numpy())
        if not names:
            return label, divergence(logits[0], logits[1], TAUGHT_BY["kl"]["temperature"])
        return label, float(np.mean([distance(*pair) for pair in zip(*said, strict=True)]))

    def gradients(self) -> list[Tensor]:
        found = [p.grad for p in self.student.parameters()]
        return [grad for grad in found if grad is not None]


def batch(rows: int = 8) -> tuple[Tensor, Tensor]:
    return drawn(rows, 3, 6, 6), torch.arange(rows) % 5


@pytest.mark.parametrize("how", TAUGHT_BY)
def test_a_step_mixes_both_losses_by_their_share_and_tells_each(how: str) -> None:
    taught, (images, labels) = Taught(how), batch()
    before = {k: v.clone() for k, v in taught.teacher.state_dict().items()}
    loss, _ = taught.step(images, labels)
    assert taught.given[-1] is images
    assert not taught.teacher.training
    assert all(p.grad is None for p in taught.teacher.parameters())
    assert all(torch.equal(v, before[k]) for k, v in taught.teacher.state_dict().items())
    label, says = taught.expected(images, labels)
    assert float(loss) == pytest.approx((1 - SHARE) * label + SHARE * says, rel=1e-5)
    told = taught.distillation.measures()
    assert told == {
        "label_loss": pytest.approx(label, rel=1e-5),
        "distillation_loss": pytest.approx(says, rel=1e-5),
    }
    assert taught.distillation.measures() == {"label_loss": 0, "distillation_loss": 0}


@pytest.mark.parametrize("how", TAUGHT_BY)
def test_passes_whose_gradients_are_added_up_are_taught_as_the_batch_is(how: str) -> None:
    whole, parts = Taught(how), Taught(how, shares=4)
    losses = [float(each.step(*batch())[0]) for each in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for one, two in zip(whole.gradients(), parts.gradients(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)
    told = [each.distillation.measures() for each in (whole, parts)]
    assert told[0] == pytest.approx(told[1], rel=1e-6)


def test_a_second_pass_for_the_gradients_is_taught_and_not_told_of() -> None:
    one, two = Taught("kl"), Taught("kl")
    two.step.sharpness = Sharpness(two.student, 0.1)
    for each in (one, two):
        each.step(*batch())
    assert len(two.given) == 2
    assert one.distillation.measures() == two.distillation.measures()


def test_the_whole_gradient_is_the_teacher_s_where_its_share_is_one() -> None:
    taught, (images, labels) = Taught("features"), batch()
    taught.distillation.share = 1.0
    taught.step(images, labels)
    assert [p.grad for p in taught.student.fc.parameters()] == [None] * 2 or all(
        not p.grad.any() for p in taught.student.fc.parameters() if p.grad is not None
    )
    assert any(grad.any() for grad in taught.gradients())


def test_sums_of_an_epoch_that_was_stopped_go_on() -> None:
    one, two = Taught("kl"), Taught("kl")
    one.step(*batch())
    state = {key: value.clone() for key, value in one.distillation.state().items()}
    two.distillation.restore(state)
    for each in (one, two):
        each.step(*batch(6))
    assert one.distillation.measures() == two.distillation.measures()


def test_a_block_that_does_not_run_is_named() -> None:
    taught = Taught("features")
    taught.student.forward = lambda x: taught.student.fc(x.mean((2, 3))[:, [0, 1, 2, 0]])
    with pytest.raises(TrainingError, match=r"blocks\.0, the network's, did not run"):
        taught.step(*batch())


@pytest.mark.parametrize("how", TAUGHT_BY)
def test_in_bfloat16_the_teacher_computes_as_the_student_does(how: str) -> None:
    taught = Taught(how, precision=torch.bfloat16)
    taught.student.float()
    taught.teacher.float()
    images, labels = batch()
    loss, _ = taught.step(images.float(), labels)
    taught.student.double()
    taught.teacher.double()
    label, says = taught.expected(images, labels)
    assert float(loss) == pytest.approx((1 - SHARE) * label + SHARE * says, rel=0.05)


def trained(world: World, how: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Train a quantized student for a few steps, each process on its rows."""
    student, teacher = net(1).float(), net(2).float()
    section = {"weights": {"bits": 4, "range": "absmax"}}
    images = drawn(8, 3, 6, 6).float()
    model = qtool.prepare(student, section, images).train()
    distillation = Distillation(teacher, share=SHARE, **TAUGHT_BY[how])
    optimizer = torch.optim.SGD(
        [p for group in parameter_groups(model) for p in group["params"]], lr=0.05
    )
    step = TrainingStep(model, LOSSES["cross_entropy"], optimizer)
    step.world, step.batch, step.distillation = world, len(images), distillation
    if isinstance(world, Group):
        step.replicas = Replicas(model, world)
    rows = slice(world.rank, None, world.size)
    for number in range(4):
        step(drawn(8, 3, 6, 6, seed=number).float()[rows], (torch.arange(8) % 5)[rows])
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
    return state, distillation.measures()


@pytest.mark.slow
@pytest.mark.parametrize("how", TAUGHT_BY)
def test_two_processes_are_taught_as_one_is(how: str, tmp_path: Any) -> None:
    alone, told = trained(ALONE, how)
    for state, said in in_processes(trained, 2, tmp_path, how):
        assert said == pytest.approx(told, rel=1e-4)
        for name, value in state.items():
            np.testing.assert_allclose(value, alone[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_network_is_taught_as_a_plain_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: compile_(f, backend="aot_eager"))
    losses = []
    for compiled in (False, True):
        student, images = net(1).float(), drawn(8, 3, 6, 6).float()
        model = qtool.prepare(student, {"weights": {"bits": 4}}, images).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        step = TrainingStep(model, LOSSES["cross_entropy"], optimizer)
        step.forward = compiled_forward(model) if compiled else None
        step.distillation = Distillation(net(2).float(), share=SHARE, **TAUGHT_BY["kl"])
        losses.append([float(step(images, torch.arange(8) % 5)[0]) for _ in range(4)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
