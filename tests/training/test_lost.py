"""What fails in the loop itself, planted in a trainer: gradients, moments, statistics, labels."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.errors import TrainingError
from qtool.evaluation import evaluate
from qtool.numerics.schedules import SCHEDULES
from qtool.training.loop import Trainer
from qtool.training.losses import LOSSES
from qtool.training.optimizers import OPTIMIZERS, parameter_groups
from qtool.training.step_watch import GradientError, LossError, StepWatch, _Kept

CPU, NAN, INF = torch.device("cpu"), float("nan"), float("inf")
SECTION: dict[str, Any] = {
    "weights": {"bits": 4},
    "activations": {"bits": 4, "place": "layer_inputs"},
}

GIVEN: dict[str, Any] = {"weights": {"bits": 4, "range": {"name": "fixed", "scale": 0.05}}}


class Noise:
    """Four batches of images in an epoch; `spoil` may change those of a step, which counts on."""

    def __init__(self, spoil: Callable[[int, Tensor, Tensor], None] | None = None) -> None:
        self.spoil, self.length = spoil, 4

    def __len__(self) -> int:
        return self.length

    def batches(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        assert not start
        generator = torch.Generator().manual_seed(epoch)
        for index in range(4):
            images = torch.randn(8, 2, 4, 4, generator=generator)
            labels = (images.mean((1, 2, 3)) > 0).long()
            if self.spoil is not None:
                self.spoil(4 * epoch + index, images, labels)
            yield images, labels


def made(spoil: Callable[[int, Tensor, Tensor], None] | None = None, **keys: Any) -> Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )
    model = qtool.prepare(net, keys.pop("section", SECTION), next(Noise().batches(0))[0])
    optimizer = OPTIMIZERS.build(keys.pop("optimizer", "sgd"))
    return Trainer(
        model=model,
        train=Noise(spoil),
        validation=keys.pop("validation", Noise()),
        loss=LOSSES.build("cross_entropy"),
        optimizer=optimizer(parameter_groups(model), 0.01),
        learning_rate=SCHEDULES.build("constant", value=0.01),
        device=keys.pop("device", CPU),
        precision=keys.pop("precision", torch.float32),
        epochs=2,
        history=[],
    )


def failure(run: Trainer) -> str:
    with pytest.raises(TrainingError) as caught:
        run.fit(lambda line: None)
    return str(caught.value)


def still(run: Trainer, name: str) -> nn.Parameter:
    """Return a parameter whose gradient is always 0."""
    parameter = run.model.get_parameter(name)
    parameter.register_hook(torch.zeros_like)
    return parameter


def at(step: int, value: float) -> Callable[[int, Tensor, Tensor], None]:
    """Return what puts a value into one pixel of the images of one step."""

    def spoil(index: int, images: Tensor, labels: Tensor) -> None:
        if index == step:
            images[3, 1, 2, 0] = value

    return spoil


def test_a_training_that_goes_well_is_not_disturbed() -> None:
    run = made()
    run.fit(lambda line: None)
    run.refuse_constant()
    assert len(run.history) == 2


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_pixel(value: float) -> None:
    said = failure(made(at(5, value)))
    assert "in epoch 2, step 2; the images themselves hold values that are not finite" in said


def test_a_pixel_of_validation() -> None:
    said = failure(made(validation=Noise(at(2, NAN))))
    assert "in validation the loss became nan in epoch 1, step 4; " in said


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("name", ["0.weight", "0.input_quantizer.scale", "4.bias"])
def test_a_gradient_although_the_loss_is_finite(name: str, value: float) -> None:
    run, seen = made(), []

    def spoil(grad: Tensor) -> Tensor:
        seen.append(grad)
        return torch.full_like(grad, value) if len(seen) == 6 else grad

    parameter = run.model.get_parameter(name)
    parameter.register_hook(spoil)
    before: list[Tensor] = []
    step = run.plain_step()

    def take(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        before.append(parameter.detach().clone())
        return step(images, labels)

    run.step = take
    said = failure(run)
    assert said.startswith("the gradients are no longer finite in epoch 2, step 2; ")
    assert f"the first gradient that went bad is that of {name}, which " in said
    assert torch.equal(parameter, before[-1])  # the weights did not move


def test_an_optimizer_s_state() -> None:
    run = made(optimizer="adamw")
    take = run.plain_step()

    def spoiled(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        found = take(images, labels)
        run.optimizer.state[run.model.get_parameter("4.weight")]["exp_avg_sq"][0, 3] = INF
        return found

    run.step = spoiled
    said = failure(run)
    assert said.startswith(
        "the optimizer's exp_avg_sq of 4.weight holds inf (1 of 32 values are not finite) after "
        "epoch 1, step 4. "
    )


@pytest.mark.parametrize("section", [{}, SECTION], ids=["float", "quantized"])
def test_a_variance_that_overflows_without_a_trace_in_the_loss(section: dict[str, Any]) -> None:
    run = made(section=section)
    norm = run.model.get_submodule("1")

    def spoil(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * 1e25,)

    norm.register_forward_pre_hook(spoil)
    said = failure(run)
    assert "1.running_var" in said
    assert "after epoch 1, step 4" in said or "in epoch 1, step" in said


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_no_class(label: int) -> None:
    def spoil(index: int, images: Tensor, labels: Tensor) -> None:
        if index == 5:
            labels.copy_(torch.tensor([0, 1, 1, 0, 1, 0, 1, label]))

    low, high = min(label, 0), max(label, 1)
    for run in (made(spoil), made(validation=Noise(spoil))):
        assert failure(run) == f"labels run from {low} to {high}; needed are 0..1, the 2 classes"


def test_no_batches() -> None:
    run = made()
    run.train = Noise()
    run.train.length = 0
    with pytest.raises(ValueError, match="gives no batch; it needs one at least"):
        run.fit(lambda line: None)
    run.train.length = 4
    run.train.batches = lambda epoch, start: iter(())
    assert failure(run) == "the training set gave no batch in epoch 1"
    with pytest.raises(ValueError, match="no batch to judge by"):
        evaluate(run.model, [], run.loss)


def test_weights_that_all_saturate_do_not_end_a_run() -> None:
    run = made(section=GIVEN)
    still(run, "4.weight").data.sign_()
    said = failure(run)
    assert said.startswith("all weights of 4 saturate: their scales are 0.05 to 0.05, and none is ")
    assert "after epoch 2, step 8" in said  # one epoch would be forgiven


def test_a_learned_input_scale_at_its_floor_does_not_end_a_run() -> None:
    run = made()
    scale = still(run, "4.input_quantizer.scale")
    scale.data.fill_(-0.1)
    said = failure(run)
    assert said.startswith(
        "the scale of 4.input_quantizer fell to its floor of 1e-08 after epoch 2"
    )


def test_a_network_that_gives_one_answer_is_named_by_its_dead_layer() -> None:
    run = made(section=GIVEN)
    still(run, "0.weight").data.mul_(0.01)
    run.fit(lambda line: None)
    with pytest.raises(TrainingError) as caught:
        run.refuse_constant()
    said = str(caught.value)
    assert "the same logits for every validation image after epoch 2, step 8; " in said
    assert "of all is 0 (all of its codes are 0; its largest weight is " in said


def test_bfloat16_that_overflows() -> None:
    run = made(precision=torch.bfloat16)
    run.model.get_parameter("4.bias").data.copy_(torch.tensor([3e38, -3e38]))
    assert "in epoch 1, step 1; " in failure(run)


def test_a_loss_may_start_at_nearly_nothing() -> None:
    watch = StepWatch()
    for loss in (1e-9, 2.0, 1e3):
        watch.see_loss(torch.tensor(loss))
    assert watch.end_epoch() is None
    watch.see_loss(torch.tensor(1.1e4))
    found = watch.end_epoch()
    assert found is not None
    assert (found[0], type(found[1])) == (3, LossError)


@pytest.mark.parametrize(
    ("losses", "norms", "expected"),
    [
        ([2, 3, 4], [1, 1, 1], None),
        ([2, 3e6, 4], [1, 1, 1], (1, LossError)),
        ([2, 3, NAN], [1, 1, 1], (2, LossError)),
        ([NAN, 3, 4], [1, 1, 1], (0, LossError)),
        ([2, 3, NAN], [1, INF, NAN], (1, GradientError)),
        ([2, INF, NAN], [1, NAN, NAN], (1, LossError)),
        ([2, 3, 1e9, 1e9], [1, 1, 1, 1], (2, LossError)),
    ],
)
def test_a_device_keeps_the_first_step_that_failed(
    losses: list[float], norms: list[float], expected: tuple[int, type] | None
) -> None:
    kept = _Kept(torch.tensor(float(losses[0])), None)
    for epoch in range(2):
        for loss, norm in zip(losses, norms, strict=True):
            kept.take(torch.tensor(float(loss)), torch.tensor(float(norm)))
        found = kept.first_failure()
        assert (found and (found[0], type(found[1]))) == expected, epoch
        kept.restart()
        assert kept.first_failure() is None


def test_what_a_device_keeps_needs_no_look_at_a_number() -> None:
    watch = StepWatch()
    loss, gradients = torch.empty((), device="meta"), [torch.empty(3, 2, device="meta")]
    for _ in range(2):
        watch.begin_epoch()
        for _ in range(3):
            watch.see_loss(loss, loss)
            watch.see_gradients(gradients, loss)
        watch.see_gradients([], loss)  # no weight trains any more


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_names_the_step_after_the_epoch() -> None:
    run = made(device=torch.device("cuda"))
    run.model.cuda()
    for data in (run.train, run.validation):
        given = data.batches
        data.batches = lambda epoch, start=0, given=given: (
            (x.cuda(), y.cuda()) for x, y in given(epoch, start)
        )
    run.optimizer = OPTIMIZERS.build("sgd")(parameter_groups(run.model), 0.01)
    seen: list[Tensor] = []

    def spoil(grad: Tensor) -> Tensor:
        seen.append(grad)
        return torch.full_like(grad, NAN) if len(seen) == 6 else grad

    run.model.get_parameter("0.weight").register_hook(spoil)
    assert failure(run).startswith("the gradients are no longer finite in epoch 2, step 2; ")
