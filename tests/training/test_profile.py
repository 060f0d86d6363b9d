"""Where the time of a step goes: phases that add up, charged rightly, and no number changed."""

import json
import sys
import time
from itertools import pairwise
from statistics import median

import pytest
import torch
from torch import nn

import qtool
from qtool import pipeline
from qtool.numerics.schedules import SCHEDULES
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.reports import tables
from qtool.runs import epochs
from qtool.training import profile
from qtool.training.loop import Trainer
from qtool.training.losses import LOSSES
from qtool.training.optimizers import OPTIMIZERS, parameter_groups
from qtool.training.profile import PHASES, WARM_UP, StepProfile, peak_memory
from tests.kit import shell, write_recipe

W4A4 = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}
QUANTIZERS = ("weight_quantizers", "activation_quantizers")
CPU = torch.device("cpu")
GOES_ON = {
    "data.batch_size": 16,
    "data.train_samples": 96,
    "quantization.overrides": [{"match": "conv1", "activations": None}],
    "training.epochs": 2,
}


class Noise:
    """Random images; `asked` is when each batch was asked for."""

    def __init__(self, steps, samples=64):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(samples, 3, 16, 16, generator=generator)
        self.labels = torch.randint(4, (samples,), generator=generator)
        self.steps, self.wait, self.asked = steps, 0.0, []

    def __len__(self):
        return self.steps

    def batches(self, epoch, start=0):
        for _ in range(start, self.steps):
            self.asked.append(time.perf_counter())
            time.sleep(self.wait)
            yield self.images, self.labels
        self.asked.append(time.perf_counter())


def small_net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 4),
    )


def trainer(net=None, section=W4A4, steps=6, epochs=1, measured=True, device=CPU, **training):
    torch.manual_seed(0)
    data = Noise(steps)
    data.images, data.labels = data.images.to(device), data.labels.to(device)
    model = qtool.prepare((net or small_net()).to(device), section, data.images)
    made = Trainer(
        model=model,
        train=data,
        validation=Noise(1) if device == CPU else data,
        loss=LOSSES.build("cross_entropy"),
        optimizer=OPTIMIZERS.build("sgd")(parameter_groups(model), 0.1),
        learning_rate=SCHEDULES.build("cosine", start=0.1, stop=0.0),
        device=device,
        precision=training.get("precision", torch.float32),
        epochs=epochs,
        history=[],
    )
    if measured:
        profile, made.step = StepProfile(device), made.plain_step()
        made.step.mark = profile.mark
        made.watchers.append(profile)
    return made


def fit(run):
    run.fit(lambda line: None)
    return run.watchers[0].report() if run.watchers else None


def test_phases_add_up_to_the_steps_as_a_clock_outside_sees_them():
    run = trainer(steps=30)
    found = fit(run)
    outside = [1000 * (end - start) for start, end in pairwise(run.train.asked)][WARM_UP:]

    assert found.steps == len(outside) == 27
    assert tuple(found.milliseconds) == tuple(found.share) == PHASES
    assert sum(found.share.values()) == pytest.approx(1, abs=1e-6)
    assert found.step_milliseconds == pytest.approx(median(outside), rel=0.02)
    assert sum(found.milliseconds.values()) == pytest.approx(median(outside), rel=0.1)
    assert all(found.share[phase] > 0 for phase in (*QUANTIZERS, "forward", "backward"))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "section",
    [
        W4A4,
        {
            "weights": {"bits": 3, "range": "absmax", "blend": "linear"},
            "activations": {"bits": 4, "place": "relu_outputs"},
        },
        {
            "weights": {"bits": 2, "range": "dorefa", "rounding": "stochastic_rounding"},
            "activations": {"bits": 4, "place": "layer_inputs", "grid": "asymmetric"},
        },
    ],
    ids=["learned", "blend, relu_outputs", "dorefa, asymmetric"],
)
def test_measuring_changes_no_number(section, precision):
    runs = [trainer(None, section, 3, 2, on, precision=precision) for on in (False, True)]
    for run in runs:
        torch.manual_seed(1)
        fit(run)
    lines = [[line.model_copy(update={"seconds": 0}) for line in run.history] for run in runs]
    assert lines[0] == lines[1]
    for name, value in runs[0].model.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, runs[1].model.state_dict()[name]), name


def test_no_hook_stays_behind():
    run = trainer()
    fit(run)

    hooks = [h for m in run.model.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
    assert not any(
        hook.__qualname__.startswith("StepProfile") for held in hooks for hook in held.values()
    )


def test_a_float_network_spends_nothing_on_quantizers():
    found = fit(trainer(section={}))

    assert [found.milliseconds[phase] for phase in QUANTIZERS] == [0, 0]


def test_waiting_for_a_batch_is_data():
    run = trainer()
    run.train.wait = 0.03

    assert fit(run).milliseconds["data"] > 25


def slow(grad, u, low, high):
    time.sleep(0.02)
    return grad


def test_the_backward_pass_of_a_quantizer_is_the_quantizer_s():
    run = trainer()
    for module in run.model.modules():
        if isinstance(module, ActivationQuantizer):
            module.estimator = slow
    found = fit(run).milliseconds

    assert found["activation_quantizers"] > 50
    assert found["activation_quantizers"] > found["backward"] + found["weight_quantizers"]


class SlowBackward(torch.autograd.Function):
    """The identity; its gradient takes its time."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        time.sleep(0.05)
        return grad


class TwoReaders(nn.Module):
    """A tensor that a slow branch and a quantized layer read.

    The branch is computed first, so its gradient comes after that of the quantizer.
    """

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        branch = SlowBackward.apply(x)
        return self.head((self.body(x) + branch).mean((2, 3)))


def test_another_reader_of_a_quantizer_s_input_is_not_the_quantizer_s():
    found = fit(trainer(TwoReaders())).milliseconds

    assert found["backward"] > 40
    assert found["backward"] > sum(found[phase] for phase in QUANTIZERS)


def test_long_epochs_are_measured_in_part(monkeypatch):
    monkeypatch.setattr(profile, "MOST_STEPS", 4)

    assert fit(trainer(steps=6, epochs=2)).steps == 2 * 4 - WARM_UP


def test_without_a_step_there_is_nothing_to_report():
    assert StepProfile(CPU).report() is None


def test_memory_is_counted_in_bytes_where_the_system_tells(monkeypatch):
    import resource

    torch_alone = 50e6  # bytes
    assert torch_alone < peak_memory(CPU) < 1e12
    if sys.platform == "linux":
        assert peak_memory(CPU) == 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(CPU) is None


def test_a_run_that_goes_on_measures_what_is_left(tmp_path, monkeypatch):
    path, run = write_recipe(tmp_path, GOES_ON), tmp_path / "run"

    def stop(line, epochs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(epochs, "say_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(path, run_dir=run, device="cpu", profile=True)
    arguments = ["train", str(path), "--run-dir", str(run), "--resume", "--profile"]
    summary = json.loads(shell(*arguments, "--json")[1])

    assert summary["profile"]["steps"] == 96 // 16 - WARM_UP
    assert json.loads((run / "summary.json").read_text()) == summary
    _, out, err = shell(*arguments)
    assert "finished already, so nothing is measured" in err
    assert "a training step, median of 3" in out
    for phase in PHASES:
        assert phase.replace("_", " ") in out


def test_memory_that_is_not_known_is_not_shown(capsys):
    found = fit(trainer())
    tables.show_profile(found)
    assert "peak memory: " in capsys.readouterr().out
    tables.show_profile(found.model_copy(update={"peak_memory_bytes": None}))
    assert "peak memory" not in capsys.readouterr().out


@pytest.mark.gpu
def test_phases_add_up_on_cuda():
    run = trainer(steps=30, device=torch.device("cuda"))
    found = fit(run)

    assert sum(found.share.values()) == pytest.approx(1, abs=1e-6)
    assert sum(found.milliseconds.values()) == pytest.approx(found.step_milliseconds, rel=1e-3)
    assert all(found.share[phase] > 0 for phase in QUANTIZERS)
    assert any(isinstance(module, FakeQuantize) for module in run.model.modules())
    assert 0 < found.peak_memory_bytes == torch.cuda.max_memory_allocated()
