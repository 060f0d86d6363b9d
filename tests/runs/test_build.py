"""What a recipe names, built."""

from types import SimpleNamespace

import pytest
import torch

from qtool.errors import InputError, RecipeError
from qtool.recipe import Recipe
from qtool.runs import machine
from qtool.runs.built import build, equipment
from qtool.settings.section import check
from qtool.training.captured import CapturedStep
from tests import kit

IMAGES = SimpleNamespace(classes=10, channels=1, image_size=28)


def recipe(**model):
    changes = {
        "data": {"name": "digits", "image_size": 28},
        "quantization.activations": kit.ABSENT,
        "quantization.overrides": [{"match": "fc3", "weights": None}],
        "training.learning_rate": 0.1,
    }
    chosen = {f"model.{key}": value for key, value in model.items()}
    return check(Recipe, kit.recipe(changes | chosen), "recipe")


def test_he_uniform_draws_quantized_layers_only_from_its_interval():
    plain = build.make_network(recipe(), IMAGES).model
    drawn = build.make_network(recipe(initialization="he_uniform"), IMAGES).model

    for name, fan_in in (("conv2", 6 * 25), ("fc1", 16 * 25)):
        weight = drawn.get_parameter(f"{name}.weight").detach()
        bound = (6 / fan_in) ** 0.5
        assert 0.97 * bound < float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert torch.equal(drawn.fc3.weight, plain.fc3.weight)


def test_the_seed_alone_decides_the_initial_weights():
    first = build.make_network(recipe(initialization="he_uniform"), IMAGES).model
    torch.randn(7)
    second = build.make_network(recipe(initialization="he_uniform"), IMAGES).model

    assert torch.equal(first.fc1.weight, second.fc1.weight)


def test_an_initialization_excludes_given_weights():
    with pytest.raises(RecipeError, match=r"model\.initialization: excludes given weights"):
        recipe(initialization="he_uniform", weights="some/file.pt")


def test_a_cuda_graph_is_left_out_on_a_cpu_with_a_note(capsys):
    plain = recipe()
    training = plain.training.model_copy(update={"cuda_graph": True})
    wanted = plain.model_copy(update={"training": training})
    network = build.make_network(wanted, IMAGES).model
    loaders = SimpleNamespace(train=[], train_split=None, validation=None, holdout=None)
    trainer = equipment.make_trainer(wanted, network, loaders, torch.device("cpu"))
    equipment.equip(trainer, wanted, loaders)

    assert not isinstance(trainer.step, CapturedStep)
    assert "without training.cuda_graph" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:x", "cpu:0", ""])
def test_a_device_that_is_none_is_refused(wanted):
    with pytest.raises(InputError, match="choose auto, cpu, cuda, mps or cuda:N"):
        machine.pick_device(wanted)


def test_the_device_of_apple_is_taken_where_it_is_but_not_to_convert(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device mps: this machine, or its torch, has none"):
        machine.pick_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.pick_device("mps") == torch.device("mps")
    with pytest.raises(InputError, match="--device mps: converting takes float64"):
        machine.pick_device("mps", converts=True)
