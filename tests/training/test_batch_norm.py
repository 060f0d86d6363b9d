"""Batch norm statistics, estimated again: plain means over batches, and nothing else moves."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool import pipeline
from qtool.recipe.file import load_recipe
from qtool.runs.built import build
from qtool.training.batch_norm import reestimate_batch_norm
from tests.kit import metrics, write_recipe

QUANTIZATION = {
    "weights": {"bits": 4},
    "activations": {
        "bits": 4,
        "place": "layer_inputs",
        "grid": "asymmetric",
        "range": "ema_min_max",
    },
}


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(6 + k, 2, 5, 5, generator=generator) * (k + 1) + k for k in range(count)]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(36)
    )


def prepared() -> nn.Module:
    model = qtool.prepare(net(), QUANTIZATION, batches()[0]).train()
    for _ in range(5):
        model(torch.randn(8, 2, 5, 5))
    return model


def test_statistics_are_the_means_over_batches() -> None:
    model = prepared()
    reestimate_batch_norm(model, batches())
    with torch.no_grad():
        outputs = [model[0](images) for images in batches()]
    means = torch.stack([y.mean((0, 2, 3)) for y in outputs])
    variances = torch.stack([y.transpose(0, 1).flatten(1).var(1) for y in outputs])
    norm: Any = model[1]
    torch.testing.assert_close(norm.running_mean, means.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, variances.mean(0), rtol=1e-5, atol=1e-6)
    assert norm.num_batches_tracked == 3


def test_a_later_norm_sees_what_the_first_makes_of_each_batch() -> None:
    model = prepared()
    reestimate_batch_norm(model, batches())
    means, variances = [], []
    for images in batches():
        y = model[0](images).detach()
        first: Any = model[1]
        normal = nn.functional.batch_norm(
            y, None, None, first.weight, first.bias, training=True, eps=first.eps
        )
        inputs = normal.relu().flatten(1).detach()
        means.append(inputs.mean(0))
        variances.append(inputs.var(0))
    last: Any = model[4]
    torch.testing.assert_close(last.running_mean, torch.stack(means).mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        last.running_var, torch.stack(variances).mean(0), rtol=1e-4, atol=1e-5
    )


def test_nothing_else_changes() -> None:
    model = prepared()
    momenta = [0.1, None]
    for norm, momentum in zip((model[1], model[4]), momenta, strict=True):
        norm.momentum = momentum
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    reestimate_batch_norm(model, batches())
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        if name.endswith(statistics):
            assert not torch.equal(after[name], value)
        elif isinstance(value, Tensor):
            assert torch.equal(after[name], value), name
        else:
            assert after[name] == value, name
    assert [model[1].momentum, model[4].momentum] == momenta
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(p.grad is None for p in model.parameters())


def test_norms_without_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d(2))
    reestimate_batch_norm(model, batches())
    norm: Any = model[1]
    assert norm.num_batches_tracked == 3


def test_a_batch_that_fails_leaves_momentum_and_mode_as_they_should_be() -> None:
    model = prepared()
    with pytest.raises(RuntimeError):
        reestimate_batch_norm(model, [torch.ones(1, 9, 5, 5)])
    norm: Any = model[1]
    assert norm.momentum == 0.1
    assert not norm.training


def recipe(folder: Path, **training: Any) -> Path:
    changes = {
        "model.name": "resnet20",
        "data.image_size": 8,
        "data.train_samples": 128,
        "training": {"epochs": 1, "optimizer": "sgd", "learning_rate": 0.05} | training,
    }
    return write_recipe(folder, changes)


def test_a_recipe_may_ask_for_it(tmp_path: Path) -> None:
    path = recipe(tmp_path, batch_norm_batches=3)
    pipeline.train(path, run_dir=tmp_path / "run", device="cpu")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    tracked = [value for name, value in state.items() if name.endswith("num_batches_tracked")]
    assert tracked
    assert all(value == 3 for value in tracked)

    loaded = load_recipe(path)
    loaders = build.make_data(loaded, torch.device("cpu"))
    built = build.make_network(loaded, loaders)
    model = build.prepare_network(loaded, built.model, loaders.first_images)
    model.load_state_dict(state)
    model.eval()
    first = next(n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))
    seen: list[Tensor] = []
    model.get_submodule(first).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for index, (images, _) in enumerate(loaders.train.batches(1)):
            if index < 3:
                model(images)
    expected = torch.stack([y.mean((0, 2, 3)) for y in seen]).mean(0)
    torch.testing.assert_close(state[f"{first}.running_mean"], expected, rtol=1e-5, atol=1e-6)

    (line,) = metrics(tmp_path / "run")
    converted = pipeline.convert(tmp_path / "run", device="cpu")
    assert converted.validation_accuracy_before == line["validation_accuracy"]
    assert abs(converted.validation_accuracy_after - line["validation_accuracy"]) <= 2 / 500


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    pipeline.train(recipe(tmp_path), run_dir=tmp_path / "run", device="cpu")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    tracked = [value for name, value in state.items() if name.endswith("num_batches_tracked")]
    assert all(value == 4 for value in tracked)


@pytest.mark.parametrize(("asked", "tracked"), [(None, 4), (2, 2), (0, 12)])
def test_after_a_blend_it_is_on_unless_the_recipe_says_otherwise(
    tmp_path: Path, asked: int | None, tracked: int
) -> None:
    path = recipe(tmp_path, epochs=3, batch_norm_batches=asked)
    blend = ["quantization.weights.blend=cubic", "quantization.weights.range=absmax"]
    pipeline.train(path, run_dir=tmp_path / "run", assignments=blend, device="cpu")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    counted = {int(v) for name, v in state.items() if name.endswith("num_batches_tracked")}
    assert counted == {tracked}  # there are 4 batches in an epoch
