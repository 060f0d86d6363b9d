"""Networks of timm by name: built, rebuilt, quantized and exported as others are."""

import importlib.util
from pathlib import Path

import pytest
import torch

from qtool import pipeline
from qtool.errors import RecipeError
from qtool.models import timm_models
from qtool.models.vision import build_model, model_problems, rebuild_model
from tests.kit import write_recipe


def test_a_network_of_timm_says_how_timm_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm_models, "find_spec", lambda name: None)
    why = 'timm:resnet18: timm is not installed; pip install "qtool[timm]"'
    assert model_problems("timm:resnet18", {}) == [("", why)]


needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="takes timm")


@needs_timm
@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("timm:resnet1x", {}, ("", "unknown model 'timm:resnet1x'; did you mean timm:resnet18?")),
        ("timm:xyzzy", {}, ("", "unknown model 'timm:xyzzy'; timm.list_models() names all")),
        (
            "timm:resnet18",
            {"in_chans": 1},
            ("in_chans", "in_chans is given by qtool; leave it out"),
        ),
        (
            "timm:resnet18",
            {"weights": "IMAGENET"},
            (
                "weights",
                "timm:resnet18 has no weights 'IMAGENET'; set DEFAULT, none or the path of",
            ),
        ),
    ],
)
def test_a_mistake_says_what_would_be_right(
    name: str, params: dict[str, object], expected: tuple[str, str]
) -> None:
    ((key, why),) = model_problems(name, params)
    assert key == expected[0]
    assert why.startswith(expected[1])


@needs_timm
def test_a_parameter_that_a_network_has_not_is_told() -> None:
    with pytest.raises(RecipeError, match=r"timm:resnet18: .*unexpected keyword argument 'depth'"):
        build_model("timm:resnet18", 10, 3, 32, depth=3)


@needs_timm
def test_a_network_is_built_again_with_its_weights(tmp_path: Path) -> None:
    built = build_model("timm:resnet18", 7, 1, 32, drop_rate=0.1)
    assert built.model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    state = built.model.state_dict()
    again = rebuild_model("timm:resnet18", built.architecture)
    again.load_state_dict(state)
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, tmp_path / "w.ckpt")
    loaded = build_model("timm:resnet18", 7, 1, 32, weights=str(tmp_path / "w.ckpt"))
    assert all(torch.equal(v, state[k]) for k, v in loaded.model.state_dict().items())
    assert loaded.note.endswith("all names begin with model., which is left out")


@needs_timm
@pytest.mark.slow
@pytest.mark.usefixtures("untimed")
def test_a_network_is_trained_converted_and_exported(tmp_path: Path) -> None:
    changes = {"model": {"name": "timm:resnet18", "channels": 1}, "data.image_size": 32}
    pipeline.train(write_recipe(tmp_path, changes), run_dir=tmp_path / "run", device="cpu")
    pipeline.convert(tmp_path / "run", device="cpu")
    found = pipeline.export(tmp_path / "run").to_json()
    assert found["top1_agreement"] >= 0.98
