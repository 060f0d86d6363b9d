"""The loop on a problem small enough to know the answer of."""

import pytest
import torch
from torch import nn

import qtool
from qtool.errors import TrainingError
from qtool.evaluation import evaluate
from qtool.numerics.schedules import SCHEDULES
from qtool.quantizers.control import blend_alphas, without_blends
from qtool.reports.results import EpochLine
from qtool.training.failures import first_bad_layer
from qtool.training.loop import Trainer
from qtool.training.losses import LOSSES
from qtool.training.optimizers import OPTIMIZERS, parameter_groups
from qtool.training.watcher import Watcher


class Blobs:
    """Two classes of points, split by the sign of their mean."""

    def __init__(self, samples=64, batch_size=16):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(samples, 2, 3, 3, generator=generator)
        self.labels = (self.images.mean((1, 2, 3)) > 0).long()
        self.batch_size = batch_size

    def __len__(self):
        return len(self.images) // self.batch_size

    def batches(self, epoch, start=0):
        order = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(epoch))
        for part in order.split(self.batch_size)[start:]:
            yield self.images[part], self.labels[part]


def trainer(epochs=3, rate=0.1, precision=torch.float32, blend=None, **weights):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    chosen = {"bits": 4, **weights}
    if blend:
        chosen |= {"range": "absmax", "blend": blend}
    data = Blobs()
    section = {"weights": chosen, "activations": {"bits": 4, "place": "layer_inputs"}}
    model = qtool.prepare(net, section, data.images)
    return Trainer(
        model=model,
        train=data,
        validation=data,
        loss=LOSSES.build("cross_entropy"),
        optimizer=OPTIMIZERS.build("sgd")(parameter_groups(model), rate),
        learning_rate=SCHEDULES.build("cosine", start=rate, stop=0.0),
        device=torch.device("cpu"),
        precision=precision,
        epochs=epochs,
        history=[],
    )


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_training_learns(precision):
    run = trainer(epochs=8, precision=precision)
    run.fit(lambda line: None)

    assert run.history[-1].train_loss < 0.5 * run.history[0].train_loss
    assert run.history[-1].validation_accuracy > 0.9


def test_two_runs_are_equal_to_the_last_bit():
    first, second = trainer(), trainer()
    for run in (first, second):
        run.fit(lambda line: None)

    for name, value in first.model.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, second.model.state_dict()[name]), name


def test_each_epoch_leaves_a_line_of_metrics():
    run, lines = trainer(epochs=2), []
    run.fit(lines.append)

    assert [line.epoch for line in lines] == [1, 2]
    assert [line.step for line in lines] == [4, 8]
    assert lines[0].learning_rate == pytest.approx(
        SCHEDULES.build("cosine", start=0.1, stop=0.0)(3 / 8)
    )
    assert set(lines[0].to_json()) == {
        "epoch",
        "step",
        "train_loss",
        "train_accuracy",
        "validation_loss",
        "validation_accuracy",
        "learning_rate",
        "flip_ratio",
        "oscillation_frequency",
        "seconds",
        "saturated_weights",
        "levels_in_use",
        "sqnr",
        "weight_scale",
        "input_scale",
    }


def test_a_run_goes_on_after_its_history():
    run = trainer(epochs=3)
    run.history = [EpochLine.model_construct(epoch=1), EpochLine.model_construct(epoch=2)]
    run.fit(lambda line: None)

    assert [line.epoch for line in run.history] == [1, 2, 3]


def test_alpha_stands_in_the_metrics_at_its_value_after_the_epoch():
    run = trainer(
        epochs=4, blend={"name": "cubic", "start": 0.0, "stop": 1.0, "window": [0.0, 0.5]}
    )
    run.fit(lambda line: None)

    assert [line.alpha for line in run.history] == pytest.approx([0.875, 1, 1, 1])


def test_a_blended_network_is_judged_as_it_is_and_as_it_would_be_deployed():
    run = trainer(
        epochs=4, bits=1, blend={"name": "linear", "start": 0.0, "stop": 1.0, "window": [0.0, 0.7]}
    )
    by_hand = []

    def judge(line):
        alphas = blend_alphas(run.model)
        blended = evaluate(run.model, run.validation.batches(0), run.loss)
        with without_blends(run.model):
            hard = evaluate(run.model, run.validation.batches(0), run.loss)
        by_hand.append((hard.loss, hard.accuracy, blended.loss, blended.accuracy))
        assert blend_alphas(run.model) == alphas

    run.fit(judge)
    keys = ["validation_loss", "validation_accuracy"]
    found = [
        [getattr(line, k) for k in (*keys, *(f"blended_{key}" for key in keys))]
        for line in run.history
    ]

    assert found == [pytest.approx(row) for row in by_hand]
    gaps = [abs(row[0] - row[2]) for row in found]
    assert gaps[0] > 0.01
    assert gaps[2:] == [0, 0]


def test_a_watcher_sees_each_validation_image_once_although_a_blend_is_judged_twice():
    run = trainer(epochs=2, blend="linear")
    seen = []

    class Watches(Watcher):
        def validated(self, logits, labels):
            seen.append(len(labels))

    run.watchers.append(Watches())
    run.fit(lambda line: None)
    assert sum(seen) == 2 * len(run.validation.images)


def test_without_a_blend_there_is_nothing_blended_in_the_metrics():
    run = trainer(epochs=1)
    run.fit(lambda line: None)

    assert not [key for key in run.history[0].to_json() if "blend" in key or key == "alpha"]


def test_the_model_is_finished_once_after_the_last_step_and_before_it_is_judged():
    run, finished = trainer(epochs=2), []
    run.fit(lambda line: None, finish=lambda model: finished.append((model, len(run.history))))

    assert finished == [(run.model, 1)]


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_first_bad_layer():
    run = trainer()
    with torch.no_grad():
        run.model[3].bias.fill_(float("nan"))

    with pytest.raises(TrainingError, match=r"became nan in epoch 1, step 1; .* 3 \(its bias"):
        run.fit(lambda line: None)


def test_bad_images_are_told_from_bad_layers():
    run = trainer()
    images = torch.full((1, 2, 3, 3), float("inf"))

    assert "images themselves" in first_bad_layer(run.model, images)
