"""What a conversion without training does, says and refuses."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from qtool import pipeline
from qtool.cli import main
from qtool.errors import InputError, RecipeError
from qtool.images.files import images_in, read_image
from qtool.post_training.improve import improve
from qtool.post_training.methods import METHODS
from qtool.quantizers.calibrate import calibrate
from qtool.quantizers.layers import quant_layers
from qtool.quantizers.prepare import prepare
from qtool.quantizers.saturation import saturating_rows, take_fewer_steps
from qtool.reports.improvements import Applied
from qtool.runs.built import build
from qtool.runs.built.build import calibration_images
from qtool.runs.converted.calibration_folder import with_calibration_images
from tests.kit import float_net, write_recipe

CPU = torch.device("cpu")


def test_a_conversion_says_its_method_its_images_and_what_was_done(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    output = tmp_path / "i.safetensors"
    report = pipeline.convert(path, output=output, device="cpu")
    assert report.method == "default"
    assert report.calibration_images == 64
    layers = {row.layer for row in report.applied if row.step == "bias_correction"}
    assert layers == {layer.name for layer in report.layers}
    written = json.loads((tmp_path / "i.convert.json").read_text())
    assert list(written)[-3:] == ["method", "calibration_images", "applied"]


def test_the_command_line_refuses_a_method_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(path), "--method", "defualt"])
    assert "unknown method 'defualt'; did you mean default?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("{name: adaround, iteration: 5}", "has no parameter iteration; did you mean iterations?"),
        (
            "{name: adaround, iterations: many}",
            "iterations: 'many' is not a whole number",
        ),
        ("{name: adaround, iterations: 0}", "iterations: 0 is less than 1"),
        ("{name: gptq, damping: 0}", "damping"),
        ("{name: adaround", "method {name: adaround: not YAML"),
        ("{iterations: 5}", "not a method; give a name, or {name: adaround, iterations: 500}"),
    ],
)
def test_parameters_of_a_method_are_checked_before_anything_is_done(
    said: str, why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(write_recipe(tmp_path)), "--method", said])
    assert why in capsys.readouterr().err


def test_a_method_takes_parameters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "i.safetensors"
    said = "{name: adaround, iterations: 3}"
    report = pipeline.convert(write_recipe(tmp_path), output=output, device="cpu", method=said)
    assert report.method == "adaround(iterations=3)"
    assert "adaround: layer 5/5" in capsys.readouterr().err
    assert {row.step for row in report.applied} == {"activation_range", "weight_scales", "rounding"}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "i.convert.json",
        "i.safetensors",
        "r.yaml",
    ]


def test_a_trained_run_takes_no_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    pipeline.train(write_recipe(tmp_path), run_dir=run, device="cpu")
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(run), "--method", "default"])
    assert "--method is for a recipe, whose network is quantized untrained" in (
        capsys.readouterr().err
    )
    converted = pipeline.convert(run, device="cpu")
    assert converted.method is None
    assert "applied" not in json.loads((run / "convert.json").read_text())


def test_improve_refuses_what_it_cannot_work_with() -> None:
    with pytest.raises(ValueError, match=r"qtool\.prepare"):
        improve(torch.nn.Linear(2, 2), [torch.ones(1, 2)])
    with pytest.raises(RecipeError, match="unknown method"):
        METHODS.refuse_unknown("brecc")
    assert issubclass(RecipeError, InputError)


def test_images_that_judge_never_calibrate(tmp_path: Path) -> None:
    """Neither validation images nor those held out are among those that calibrate."""
    changes = {
        "data.train_samples": 400,
        "data.holdout": 0.25,
        "data.augment": False,
        "training.calibration_batches": 100,
    }
    recipe = build.load_checked(write_recipe(tmp_path, changes))
    data = build.make_data(recipe, torch.device("cpu"))
    assert data.holdout is not None

    def digests(batches: Iterable[Tensor]) -> list[bytes]:
        return [image.numpy().tobytes() for images in batches for image in images]

    seen = digests(calibration_images(recipe, data))
    judged = digests(images for images, _ in data.validation.batches(0))
    held = digests(images for images, _ in data.holdout.batches(0))
    assert len(seen) == 288  # the 9 whole batches of 32 there are in 300 images
    assert len(judged) == 500
    assert len(held) == 100
    assert not set(seen) & set(judged)
    assert not set(seen) & set(held)


def write_images(folder: Path, count: int, seed: int) -> None:
    """Write little grey pictures, each another."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    for place, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{place}.png")


def test_a_folder_of_unlabelled_images_calibrates(tmp_path: Path) -> None:
    """Its images alone: prepared as those that judge, evenly over the folder."""
    write_images(tmp_path / "mine", 100, seed=3)
    recipe = build.load_checked(write_recipe(tmp_path, {"training.calibration_batches": 2}))
    data = build.make_data(recipe, CPU)
    given = with_calibration_images(data, tmp_path / "mine", recipe, CPU)
    seen = torch.cat(list(calibration_images(recipe, given)))
    assert seen.shape == (64, 1, 16, 16)
    assert given.preprocess is not None
    paths = images_in(tmp_path / "mine")
    expected = given.preprocess.prepared(read_image(paths[10 * 100 // 64], "gray"))
    assert np.abs(seen.numpy() - expected).sum((1, 2, 3)).min() < 1e-4
    report = pipeline.convert(
        tmp_path / "r.yaml",
        output=tmp_path / "i.safetensors",
        device="cpu",
        calibration_images=tmp_path / "mine",
    )
    assert report.calibration_images == 64


def test_a_folder_of_images_is_refused_where_it_may_not_calibrate(tmp_path: Path) -> None:
    photographs = tmp_path / "data"
    for label in "ab":
        write_images(photographs / "train" / label, 4, seed=ord(label))
        write_images(photographs / "val" / label, 3, seed=1000 + ord(label))
    changes = {
        "data": {
            "name": "image_folder",
            "root": str(photographs),
            "batch_size": 4,
            "image_size": 16,
        },
    }
    path = write_recipe(tmp_path, changes)
    copied = tmp_path / "copied"
    write_images(copied, 2, seed=5)
    shutil.copy(photographs / "val" / "a" / "1.png", copied / "mine.png")

    def refused(folder: Path) -> str:
        output = tmp_path / "i.safetensors"
        with pytest.raises(InputError) as caught:
            pipeline.convert(path, output=output, device="cpu", calibration_images=folder)
        return str(caught.value)

    assert "1 of its images are among those that judge (mine.png)" in refused(copied)
    assert "no such folder of images" in refused(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "holds no images; their names end in .bmp" in refused(tmp_path / "empty")


def _could_saturate(model: nn.Module) -> list[str]:
    return [n for n, layer in quant_layers(model).items() if saturating_rows(layer).any()]


@torch.no_grad()
@pytest.mark.parametrize("method", ["default", "gptq", "{name: adaround, iterations: 5}"])
def test_without_saturation_codes_and_biases_make_up_for_what_is_held_back(
    method: str,
) -> None:
    """Nothing can saturate any more, for hardly any error, of whatever method codes are."""
    batch = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    net = float_net()
    with torch.no_grad():
        net.conv1.weight.abs_()  # large sums of one sign, which can saturate
        net.conv2.weight.abs_()
    section = {"weights": {"bits": 8}, "activations": {"bits": 8}}

    def made(saturation: Literal["allow", "avoid"]) -> tuple[nn.Module, list[Applied]]:
        model = prepare(net, section, batch, trains=False)
        calibrate(model, [batch])
        return model, improve(model, [batch], method, saturation=saturation).applied

    def wrong(model: nn.Module) -> float:
        return float((model(batch) - net(batch)).square().mean().sqrt())

    as_it_is, _ = made("allow")
    assert "conv2" in _could_saturate(as_it_is)
    avoided, applied = made("avoid")
    assert _could_saturate(avoided) == []
    rounded = {n: la.weight_quantizer for n, la in quant_layers(avoided).items()}
    anew = {n for n, q in rounded.items() if q and q.rounded_anew}
    assert anew >= {"conv1", "conv2"}
    assert sum(row.step == "bias_correction" for row in applied) == 3
    assert {row.layer for row in applied if row.step == "saturation"} == anew
    usual = wrong(as_it_is)
    take_fewer_steps(as_it_is)
    mean = net(batch).mean(0)
    off, off_if_left = ((m(batch).mean(0) - mean).abs().max() for m in (avoided, as_it_is))
    assert off < 0.1 * off_if_left
    assert wrong(avoided) < usual + 0.25 * (wrong(as_it_is) - usual)


@torch.no_grad()
def test_layers_whose_codes_cannot_move_one_by_one_take_fewer_steps() -> None:
    """As where all channels share a scale."""
    batch = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    net = float_net()
    with torch.no_grad():
        net.conv2.weight.abs_()
    section = {"weights": {"bits": 8, "granularity": "per_tensor"}, "activations": {"bits": 8}}
    model = prepare(net, section, batch, trains=False)
    calibrate(model, [batch])
    improve(model, [batch], saturation="avoid")
    assert _could_saturate(model) == []
    quantizer = quant_layers(model)["conv2"].weight_quantizer
    assert quantizer is not None
    assert quantizer.rounded_anew > 0
    assert quantizer.scale.ndim > 0  # of channels that were rounded anew, and of others
