"""Steps captured in CUDA graphs; on a CPU, what chooses a graph and what may not be in one."""

from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.errors import TrainingError
from qtool.quantizers.control import begin_step, make_traceable, set_progress
from qtool.training import captured
from qtool.training.captured import WARM_UP, CapturedStep
from qtool.training.losses import cross_entropy
from qtool.training.optimizers import OPTIMIZERS, make_capturable, parameter_groups, set_rate
from qtool.training.step import TrainingStep
from tests.kit import nothing_waits

EASED = {"name": "linear", "start": 1.0, "stop": 4.0}
RISING = {"name": "linear", "start": 0.0, "stop": 1.0, "window": [0.0, 0.5]}
SECTIONS: dict[str, dict[str, Any]] = {
    "learned": {"weights": {"bits": 3}, "activations": {"bits": 3, "place": "layer_inputs"}},
    "blend": {"weights": {"bits": 3, "range": "absmax", "blend": RISING}},
    "moving": {
        "weights": {
            "bits": 3,
            "estimator": {"name": "hyperbolic_tangent", "sharpness": EASED},
            "dampening": EASED,
            "freezing": {"threshold": 0.01, "momentum": 0.2},
        }
    },
    "followed": {
        "weights": {"bits": 3},
        "activations": {"bits": 3, "place": "layer_inputs", "range": "ema_min_max"},
    },
    "at the ReLUs": {
        "weights": {"bits": 3},
        "activations": {"bits": 3, "place": "relu_outputs", "estimator": "clipped_relu"},
    },
    "at every value": {
        "weights": {"bits": 3},
        "activations": {"bits": 3, "place": "every_value", "estimator": "clipped_relu"},
    },
}


def batch(seed: int, device: str) -> tuple[Tensor, Tensor]:
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return images.to(device), (torch.arange(6) % 4).to(device)


def made(name: str, optimizer: str, device: str) -> TrainingStep:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)
    )
    model = qtool.prepare(net.to(device), SECTIONS[name], batch(0, device)[0]).train()
    groups = parameter_groups(model)
    return TrainingStep(model, cross_entropy, OPTIMIZERS.build(optimizer)(groups, 0.05))


def losses(take: Any, step: TrainingStep, device: str, count: int = 24) -> list[float]:
    found = []
    for index in range(count):
        set_progress(step.model, index / count)
        set_rate(step.optimizer, 0.05 / (1 + index))
        found.append(take(*batch(index, device))[0].clone())
    return [float(loss) for loss in found]


def capturable(step: TrainingStep) -> CapturedStep:
    make_traceable(step.model)
    make_capturable(step.optimizer, next(step.model.parameters()).device)
    return CapturedStep(step)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", SECTIONS)
def test_a_captured_step_trains_as_the_plain_one_does(name: str, optimizer: str) -> None:
    plain = made(name, optimizer, "cuda")
    expected = losses(plain, plain, "cuda")
    step = made(name, optimizer, "cuda")
    assert losses(capturable(step), step, "cuda") == pytest.approx(expected, rel=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_no_step_waits_for_the_device() -> None:
    step = made("learned", "sgd", "cuda")
    step.clip = 1.0
    batches = [batch(index, "cuda") for index in range(4)]
    step(*batches[0])
    with nothing_waits():
        for index, (images, labels) in enumerate(batches):
            set_progress(step.model, index / 4)
            step(images, labels)


class Recorded(CapturedStep):
    """Plays no graphs, but notes which it would have: "warm-up", or the number of the graph."""

    def __init__(self, step: TrainingStep) -> None:
        super().__init__(step)
        self.played: list[Any] = []

    def _warm_up(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self.played.append("warm-up")
        return self.step.run(images, labels)

    def _capture(self, images: Tensor, labels: Tensor) -> Any:
        recorder, number = self, len(self._captured)

        class Graph:
            def replay(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
                recorder.played.append(number)
                return recorder.step.run(images, labels)

        return Graph()


def test_graphs_are_captured_after_steps_that_warm_up() -> None:
    step = made("learned", "sgd", "cpu")
    recorded = Recorded(step)
    expected = made("learned", "sgd", "cpu")
    assert losses(recorded, step, "cpu", 8) == losses(expected, expected, "cpu", 8)
    assert recorded.played == ["warm-up"] * WARM_UP + [0] * 5


def test_another_graph_is_for_steps_that_look_at_ranges() -> None:
    step = made("followed", "sgd", "cpu")
    recorded = Recorded(step)
    losses(recorded, step, "cpu", 41)
    looks = recorded.played[0::8]  # every eighth step
    assert looks == ["warm-up"] * WARM_UP + [1] * 3
    others = [p for index, p in enumerate(recorded.played) if index % 8]
    assert others == ["warm-up"] * WARM_UP + [0] * 32


def test_another_graph_is_for_weights_that_no_longer_train() -> None:
    step = made("blend", "sgd", "cpu")
    recorded = Recorded(step)
    losses(recorded, step, "cpu", 16)
    assert recorded.played == (["warm-up"] * WARM_UP + [0] * 5) + (["warm-up"] * WARM_UP + [1] * 5)


def test_a_step_that_cannot_be_captured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def __init__(self, graph: Any, *, capture_error_mode: str) -> None:
            modes.append(capture_error_mode)

        def __enter__(self) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

        def __exit__(self, *error: object) -> None:
            return None

    modes: list[str] = []
    step = capturable(made("learned", "sgd", "cpu"))
    monkeypatch.setattr(captured.torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(captured.torch.cuda, "graph", Refuses)
    wanted = (
        "graph: operation not permitted when stream is capturing. Leave out training.cuda_graph"
    )
    with pytest.raises(TrainingError, match=wanted):
        step._capture(*batch(0, "cpu"))
    assert modes == ["thread_local"]  # another thread may pin memory meanwhile


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_thread_may_pin_memory_while_a_step_is_captured() -> None:
    plain = made("learned", "sgd", "cuda")
    expected = losses(plain, plain, "cuda", 6)
    stop = Event()

    def pin() -> None:
        while not stop.is_set():
            torch.empty(1 << 16).pin_memory()

    thread = Thread(target=pin)
    thread.start()
    try:
        step = made("learned", "sgd", "cuda")
        found = losses(capturable(step), step, "cuda", 6)
    finally:
        stop.set()
        thread.join()
    assert found == pytest.approx(expected, rel=2e-2)


def test_learning_rates_stay_in_the_tensors_that_a_graph_reads() -> None:
    step = made("learned", "adamw", "cpu")
    make_capturable(step.optimizer, torch.device("cpu"))
    held = [group["lr"] for group in step.optimizer.param_groups]
    set_rate(step.optimizer, 0.25)
    now = [group["lr"] for group in step.optimizer.param_groups]
    assert all(one is other for one, other in zip(now, held, strict=True))
    assert [float(rate) for rate in held] == [0.25] * len(held)
    assert all(group["capturable"] for group in step.optimizer.param_groups)


def test_another_graph_is_for_each_choice_of_ranges_that_are_looked_at() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten())
    ranges = [{"name": "ema_min_max", "every": every} for every in (2, 3)]
    section = {
        "activations": {"bits": 3, "place": "layer_inputs", "range": ranges[0]},
        "overrides": [{"match": "2", "activations": {"range": ranges[1]}}],
    }
    model = qtool.prepare(net, section, batch(0, "cpu")[0]).train()
    optimizer = OPTIMIZERS.build("sgd")(parameter_groups(model), 0.05)
    step = CapturedStep(TrainingStep(model, cross_entropy, optimizer))
    kinds = []
    for _ in range(6):
        begin_step(model)
        kinds.append(step._kind_of(batch(0, "cpu")[0]))
    assert len(set(kinds)) == 4  # both look, neither does, the first alone, the second alone
