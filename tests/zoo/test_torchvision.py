"""torchvision's classifiers: a narrow one of each family, and all of them, from step to gate."""

import os
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import qtool
from tests.zoo import sweep
from tests.zoo.harness import disagreement
from tests.zoo.narrow import CLASSES, FAMILIES
from tests.zoo.published import torchvision_networks

RECIPE = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "every_value"}}
EXPORTED = ("mobilenet_v3", "regnet", "swin", "vit")
TOO_LARGE = ("torchvision/regnet_y_128gf", "torchvision/vit_h_14")  # 645 and 633 million weights

pytestmark = pytest.mark.filterwarnings("default")  # torchvision has its own to say


def images(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def trained(family: str) -> nn.Module:
    """Return a network of a family after a step, its biases in whole steps."""
    torch.manual_seed(0)
    prepared = qtool.prepare(FAMILIES[family](), RECIPE, example=images(8, 1))
    sweep.step(prepared, images(CLASSES, 2))
    qtool.reestimate_batch_norm(prepared, [images(8, 1)])
    qtool.round_biases(prepared)
    return prepared


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_prepared_trained_and_converted(family: str) -> None:
    model = FAMILIES[family]()
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    prepared = trained(family)
    integer = qtool.convert(prepared)
    told = integer.qtool
    assert not told.left_float.keys() & set(layers)  # tables of positions stay
    assert len(told.layers) >= len(layers)  # attention has layers that were none
    assert not any(isinstance(model.get_submodule(n), nn.BatchNorm2d) for n in told.not_folded)
    with torch.no_grad():
        expected, given = prepared(images(32, 3)), integer(images(32, 3))
    assert disagreement(expected, given, "logits", exact=True) == ""


@pytest.mark.slow
@pytest.mark.parametrize("family", EXPORTED)
def test_a_family_is_exported(family: str, tmp_path: Path) -> None:
    integer = qtool.convert(trained(family))
    qtool.export_onnx(integer, images(2, 4), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images(32, 3).numpy()})
    with torch.no_grad():
        expected = integer(images(32, 3))
    assert disagreement(expected, torch.from_numpy(found), "logits", exact=True) == ""


def test_there_are_eighty_classifiers() -> None:
    assert len(torchvision_networks()) == 80
    assert set(TOO_LARGE) < torchvision_networks().keys()


@pytest.mark.slow
@pytest.mark.parametrize("setting", sweep.SETTINGS)
def test_every_classifier_comes_through(setting: str, tmp_path: Path) -> None:
    """Go on where QTOOL_SWEEP, a file of JSON lines, stops; all of them take hours."""
    results = Path(os.environ.get("QTOOL_SWEEP", tmp_path / "sweep.jsonl"))
    sweep.run(["torchvision/"], results, [setting])
    found = {name: one for (name, at), one in sweep.read(results).items() if at == setting}
    bad = {n: sweep.said(one) for n, one in found.items() if one["outcome"] != "right"}
    assert bad.keys() <= set(TOO_LARGE), bad
    assert found.keys() >= torchvision_networks().keys()


def test_a_sweep_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch) -> None:
    ran = []

    def judged(name: str, setting: str, *limits: int) -> dict[str, object]:
        ran.append(name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return {"network": name, "setting": setting, "outcome": "not run", "why": ""}

    monkeypatch.setattr(sweep, "in_a_child", judged)
    results, patterns = tmp_path / "r.jsonl", ["torchvision/squeezenet", "torchvision/alexnet"]
    with pytest.raises(KeyboardInterrupt):
        sweep.run(patterns, results, ["W4A8"])
    with results.open("a") as file:
        file.write('{"network": "torchvision/alex')  # a line that was cut off
    sweep.run(patterns, results, ["W4A8"])
    assert ran == [
        "torchvision/squeezenet1_1",
        "torchvision/squeezenet1_0",
        "torchvision/squeezenet1_0",
        "torchvision/alexnet",
    ]
    assert len(sweep.read(results)) == 3
