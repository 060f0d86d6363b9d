"""The whole story on real digits: train, convert, export, compare, inspect."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits

import qtool
from qtool import pipeline, uses
from qtool.data.datasets import digits
from qtool.errors import ConversionError, ExportError, InputError
from qtool.export.proof import gate, latency, measure
from qtool.export.proof.why_slow import Kernels
from qtool.export.targets.onnxruntime import OnnxRuntime, OnnxSession
from qtool.integer.layers import integer_layers
from qtool.numerics.saturation import can_saturate
from qtool.reports.exports import FloatOperator
from qtool.runs import epochs
from qtool.runs.converted.integer import Integer
from tests.kit import metrics, shell

ROOT_RECIPE = Path(__file__).parent.parent / "recipes" / "digits.yaml"
RECIPE = {
    "seed": 0,
    "model": {"name": "lenet5"},
    "data": {"name": "digits", "image_size": 28},
    "quantization": {
        "weights": {"bits": 4},
        "activations": {"bits": 4, "place": "layer_inputs", "estimator": "clipped_relu"},
        "overrides": [
            {"match": ["conv1", "fc3"], "weights": {"bits": 8}, "activations": {"bits": 8}}
        ],
    },
    "training": {
        "epochs": 12,
        "optimizer": "adamw",
        "learning_rate": {"name": "cosine", "start": 4e-3, "stop": 0.0},
    },
}


def write(folder, recipe):
    path = folder / "digits.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("story")
    run = folder / "run"
    recipe = write(folder, RECIPE)
    trained = pipeline.train(recipe, run_dir=run, device="cpu")
    converted = pipeline.convert(run, device="cpu")
    exported = pipeline.export(run, output=folder / "m.onnx")
    return folder, run, trained, converted, exported


def test_a_small_network_learns_the_digits(story):
    _, _, trained, _, _ = story

    assert trained.status == "finished"
    assert trained.validation_accuracy > 0.93


def test_converting_costs_at_most_one_image(story):
    _, _, trained, converted, _ = story
    before, after = (
        getattr(converted, f"validation_accuracy_{when}") for when in ("before", "after")
    )

    assert before == trained.validation_accuracy
    assert abs(before - after) <= 1 / 500
    assert converted.integer_bytes < converted.float_bytes / 5


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory):
    """The same network in 8 bits throughout, of which fc1 after one epoch has close to its first
    weights: uniform ones, so that about every fourth pair of neighbours could saturate.
    """
    folder = tmp_path_factory.mktemp("eight")
    quantization = {
        "weights": {"bits": 8},
        "activations": {**RECIPE["quantization"]["activations"], "bits": 8},
    }
    recipe = {**RECIPE, "quantization": quantization}
    recipe["training"] = {**RECIPE["training"], "epochs": 1}
    trained = pipeline.train(write(folder, recipe), run_dir=folder / "run", device="cpu")
    return folder / "run", trained


def test_channels_that_could_saturate_are_rounded_anew_and_the_cost_is_told(eight_bits, tmp_path):
    run, trained = eight_bits
    plain = pipeline.convert(run, output=tmp_path / "plain.safetensors")
    assert plain.no_saturation is None
    could = set(uses.inspect(tmp_path / "plain.safetensors").may_saturate)
    path = tmp_path / "safe.safetensors"
    avoided = pipeline.convert(run, output=path, no_saturation=True)

    told = avoided.no_saturation
    assert could >= {"fc1"}
    assert set(told.channels) == could
    assert told.validation_accuracy_before == trained.validation_accuracy
    assert told.validation_accuracy_after == avoided.validation_accuracy_after
    assert abs(avoided.validation_accuracy_after - trained.validation_accuracy) <= 5 / 500
    assert {la.name: la.fewer_steps for la in avoided.layers if la.fewer_steps} == told.channels
    assert uses.inspect(path).may_saturate == []
    again = pipeline.export(path, output=tmp_path / "m.onnx")
    assert again.may_saturate == []
    assert again.accuracy_runtime == pytest.approx(told.validation_accuracy_after, abs=1 / 500)


def test_files_say_what_their_classes_are_and_how_images_are_prepared(story):
    folder, run, _, _, _ = story
    with safe_open(run / "integer.safetensors", framework="pt") as opened:
        of_integer = opened.metadata()
    of_file = {e.key: e.value for e in onnx.load(folder / "m.onnx").metadata_props}

    for said in (of_integer, of_file):
        assert json.loads(said["qtool.classes"]) == list("0123456789")
        rule = json.loads(said["qtool.preprocess"])
        assert (rule["size"], rule["channels"], rule["crop"]) == ([28, 28], "gray", "none")
        assert rule["resize"]["rule"] == "squeeze"
    images = load_digits().images  # of sixteenths
    assert rule["mean"] == pytest.approx([images.mean() / 16], abs=0.002)
    assert rule["std"] == pytest.approx([images.std() / 16], abs=0.002)


@pytest.mark.usefixtures("untimed")
def test_a_run_an_integer_model_and_a_file_tell_the_same_classes_of_pictures(story, tmp_path):
    folder, run, _, _, _ = story
    given = Integer.open(run / "integer.safetensors")
    batches = list(given.data.validation.batches(0))
    expected = torch.cat([given.model(images) for images, _ in batches]).argmax(1)[:200]
    for place, picture in enumerate(digits(tmp_path).validation.images[:200]):
        Image.fromarray(picture[0].numpy()).save(tmp_path / f"{place:03}.png")

    kinds = (run, run / "integer.safetensors", folder / "m.onnx")
    told = [uses.predict(kind, [tmp_path], top=1) for kind in kinds]
    best = [[one.classes[0] for one in each.images] for each in told]
    for found in best:
        assert all(c.name == str(c.index) for c in found)
        same = torch.tensor([c.index for c in found]) == expected
        assert same.sum() >= 198  # one grey level in 5 % of the pixels, by Pillow's rounding
    assert [[c.index for c in found] for found in best[1:]] == [[c.index for c in best[0]]] * 2


def test_the_runtime_agrees_with_the_integer_model(story):
    folder, _, _, converted, exported = story

    assert exported.top1_agreement >= 0.995
    assert exported.accuracy_runtime == pytest.approx(
        converted.validation_accuracy_after, abs=1 / 500
    )
    assert exported.images == 500
    assert exported.fused_share == 1.0
    assert json.loads((folder / "m.export.json").read_text()) == exported.to_json()
    assert (folder / "m.onnx").stat().st_size == exported.file_bytes


@pytest.mark.usefixtures("untimed")
def test_a_run_without_an_integer_model_is_converted_first(story, tmp_path):
    folder, run, _, _, exported = story
    (run / "integer.safetensors").unlink()
    again = pipeline.export(run, output=tmp_path / "m.onnx")

    assert (run / "integer.safetensors").is_file()
    assert (tmp_path / "m.onnx").read_bytes() == (folder / "m.onnx").read_bytes()
    assert again.max_abs_difference == exported.max_abs_difference


@pytest.mark.usefixtures("untimed")
def test_a_file_that_disagrees_is_not_written(story, tmp_path, monkeypatch):
    _, run, _, _, _ = story
    right = OnnxSession.run

    def wrong(session, given):
        return {name: -value for name, value in right(session, given).items()}

    monkeypatch.setattr(OnnxSession, "run", wrong)
    with pytest.raises(ExportError, match=r"the top class agrees on 0\.0"):
        pipeline.export(run, output=tmp_path / "m.onnx")

    assert [path.name for path in tmp_path.iterdir()] == ["m.export.json"]
    said = json.loads((tmp_path / "m.export.json").read_text())["disagreement"]
    assert said.startswith("the top class agrees on 0.0")


@pytest.mark.usefixtures("untimed")
def test_a_strict_export_does_not_write_a_file_with_float_between_integers(
    story, tmp_path, monkeypatch
):
    _, run, _, _, _ = story
    slow = FloatOperator(operator="Add", name=":add0", reason="a reason", change="a change")
    monkeypatch.setattr(measure, "kernels_of", lambda *_: Kernels(3, 4, [slow]))
    code, out, err = shell("export", str(run), "--output", str(tmp_path / "m.onnx"), "--strict")

    assert (code, out) == (1, "")
    assert ":add0 (Add): a reason" in err
    assert [path.name for path in tmp_path.iterdir()] == ["m.export.json"]
    report = json.loads((tmp_path / "m.export.json").read_text())
    assert report["integer_share"] == 0.75
    assert report["why_slow"] == [slow.to_json()]


def test_a_file_that_is_slower_than_the_float_model_is_said_so_also_beside_json(
    story, tmp_path, monkeypatch
):
    _, run, _, _, _ = story
    monkeypatch.setattr(latency, "latencies", lambda paths, *_, **__: [1.0, 2.0, 0.5][: len(paths)])
    arguments = ["export", str(run), "--output", str(tmp_path / "m.onnx")]
    _, out, err = shell(*arguments, "--json", "--measure")

    said = json.loads(out)
    assert said["latency_ms"]["static"] == 0.5
    assert said["latency_ms"]["all_threads"]["exported"] == 2.0
    assert "WARNING: one image takes 2.00 ms, in the float model 1.00" in err


def test_comparing_again_reuses_every_trial(tmp_path, monkeypatch):
    recipe = write(tmp_path, RECIPE)
    arguments = {
        "names": ["straight_through", "identity"],
        "seeds": 2,
        "output": tmp_path / "comparison",
        "assignments": ["training.epochs=1", "data.train_samples=128"],
        "device": "cpu",
    }
    first = pipeline.compare_estimators(recipe, **arguments)
    monkeypatch.setattr("qtool.training.loop.Trainer.fit", None)  # nothing may train again
    second = pipeline.compare_estimators(recipe, **arguments)

    assert first == second
    assert json.loads((tmp_path / "comparison" / "comparison.json").read_text()) == first.to_json()
    assert [len(arm.values) for arm in first.arms] == [2, 2]
    assert first.on == "activations"
    assert first.seeds == [0, 1]
    assert first.differences[0].low is not None


def test_arms_of_one_seed_start_from_the_same_weights_and_data(tmp_path):
    recipe = write(tmp_path, RECIPE)
    result = pipeline.compare_estimators(
        recipe,
        names=["straight_through", "identity"],
        on="weights",
        seeds=[5],
        output=tmp_path / "c",
        assignments=["training.epochs=1", "training.learning_rate=0.0", "data.train_samples=128"],
        device="cpu",
    )
    a, b = (arm.values for arm in result.arms)

    assert a == b  # without a step the estimator cannot matter


def test_a_trial_that_diverges_is_counted_and_the_others_go_on(tmp_path):
    recipe = write(tmp_path, RECIPE)
    result = pipeline.compare_estimators(
        recipe,
        names=["straight_through", "identity"],
        seeds=[0],
        output=tmp_path / "c",
        assignments=["training.epochs=1", "training.optimizer=sgd", "training.learning_rate=1e30"],
        device="cpu",
    )

    assert [arm.failed for arm in result.arms] == [1, 1]
    assert result.differences[0].mean is None


def test_a_comparison_in_the_folder_of_another_one_is_refused(tmp_path):
    recipe = write(tmp_path, RECIPE)
    shared = {"names": ["identity"], "seeds": [0], "output": tmp_path / "c", "device": "cpu"}
    settings = ["training.epochs=1", "data.train_samples=64"]
    pipeline.compare_estimators(recipe, assignments=settings, **shared)

    settings[0] = "training.epochs=2"
    with pytest.raises(InputError, match=r"training\.epochs: 1 there, 2 here"):
        pipeline.compare_estimators(recipe, assignments=settings, **shared)


def test_runs_and_files_stand_side_by_side(story, tmp_path):
    folder, run, trained, _, exported = story
    result = pipeline.compare_runs([run, folder / "m.onnx"], output=tmp_path)
    first, second = result.arms

    assert first.mean == trained.validation_accuracy
    assert second.mean == exported.accuracy_runtime
    assert second.bytes == exported.file_bytes
    assert json.loads((tmp_path / "comparison.json").read_text()) == result.to_json()
    images = len(np.load(run / "validation.npz")["prediction"])
    differing = result.differences[0].arm_only, result.differences[0].against_only
    assert differing[0] - differing[1] == round(images * (second.mean - first.mean))
    assert f"{folder / 'm.onnx'} against {run}: " in result.verdict


def test_given_weights_are_quantized_without_training(story, tmp_path, monkeypatch):
    _, run, _, _, _ = story
    monkeypatch.chdir(tmp_path)
    state = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    plain = {k: v for k, v in state.items() if "quantizer" not in k and "extra" not in k}
    torch.save(plain, tmp_path / "weights.pt")
    recipe = RECIPE | {"model": {"name": "lenet5", "weights": str(tmp_path / "weights.pt")}}
    # 7 bits of weight: products of 8 and 8 saturate in int8 kernels that have AVX2 but no VNNI
    seven, eight = ({"bits": bits, "range": "absmax"} for bits in (7, 8))
    recipe = recipe | {"quantization": {"weights": seven, "activations": eight}}
    result = pipeline.convert(write(tmp_path, recipe), device="cpu")

    assert result.validation_accuracy_float > 0.8  # latent weights are only near good ones
    lost = result.validation_accuracy_float - result.validation_accuracy_after
    assert lost <= 0.01
    assert (tmp_path / "runs" / "digits" / "integer.safetensors").is_file()
    exported = pipeline.export(tmp_path / "runs" / "digits")
    assert exported.top1_agreement >= 0.995


def test_a_blend_that_is_not_done_is_not_converted(tmp_path):
    blend = {"name": "cubic", "start": 0.0, "stop": 1.0}
    weights = {"bits": 4, "range": "absmax", "blend": blend}
    training = RECIPE["training"] | {"epochs": 2}
    recipe = RECIPE | {"quantization": {"weights": weights}, "training": training}
    path, run = write(tmp_path, recipe), tmp_path / "run"
    calls = []

    def stop(line, epochs):
        calls.append(line)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epochs, "say_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(path, run_dir=run, device="cpu")
    for command in (partial(pipeline.convert, device="cpu"), pipeline.export):
        with pytest.raises(ConversionError, match=r"conv1\.weight_quantizer \(alpha 0\.875\)"):
            command(run)
    assert not list(run.glob("*.safetensors")) + list(run.glob("*.onnx"))

    pipeline.train(path, run_dir=run, device="cpu", resume=True)
    lines = metrics(run)
    both = [(x["validation_accuracy"], x["blended_validation_accuracy"]) for x in lines]
    assert both[0][0] < both[0][1]
    assert both[1][0] == both[1][1]
    result = pipeline.convert(run, device="cpu")
    before, after = (getattr(result, f"validation_accuracy_{when}") for when in ("before", "after"))
    assert before == after


def test_inspection_shows_the_same_layers_of_recipe_run_integer_model_and_file(story):
    folder, run, _, _, _ = story
    sources = (folder / "digits.yaml", run, run / "integer.safetensors", folder / "m.onnx")
    found = [uses.inspect(source) for source in sources]

    assert [item.kind for item in found] == ["recipe", "run", "integer model", "ONNX model"]
    names = [[layer.layer for layer in item.layers] for item in found]
    assert names == [["conv1", "conv2", "fc1", "fc2", "fc3"]] * 4
    assert [layer.weight_bits for layer in found[2].layers] == [8, 4, 4, 4, 8]
    assert [layer.weight_bits for layer in found[3].layers] == [8, 4, 4, 4, 8]
    assert found[3].problems == []
    by_widths, of_run, by_codes, in_kernels = (item.may_saturate for item in found)
    assert by_widths == of_run == ["conv1", "fc3"]
    codes = {n: la.codes for n, la in integer_layers(Integer.open(sources[2]).model).items()}
    assert by_codes == [n for n in ("conv1", "fc3") if can_saturate(codes[n], 255).any()]
    assert in_kernels == []  # of one row, and so uint8


def test_a_loop_of_ones_own_can_do_what_training_does(tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 36, 3),
    )
    images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 3
    weights = {"bits": 2, "range": "absmax", "blend": {"name": "linear", "window": [0.0, 0.5]}}
    model = qtool.prepare(
        net, {"weights": weights, "activations": {"bits": 4, "place": "layer_inputs"}}
    )
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(images, labels), batch_size=16
    )
    qtool.calibrate(model, loader)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for epoch in range(4):
        for x, y in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        qtool.set_progress(model, (epoch + 1) / 4)
    qtool.round_biases(model)
    model.eval()
    integer = qtool.convert(model)
    with torch.no_grad():
        torch.testing.assert_close(integer(images), model(images), rtol=1e-3, atol=1e-3)
    qtool.export_onnx(integer, images, tmp_path / "m.onnx")
    runtime = gate.run(OnnxRuntime().open(tmp_path / "m.onnx"), images)
    torch.testing.assert_close(runtime, integer(images), rtol=1e-3, atol=1e-3)


def test_a_stopped_run_says_how_far_it_came(tmp_path, capsys, monkeypatch):
    path, run = write(tmp_path, RECIPE), tmp_path / "run"

    def stop_after_two(line, epochs):
        if line.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(epochs, "say_epoch", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(path, run_dir=run, device="cpu")
    summary = json.loads((run / "summary.json").read_text())

    assert (summary["status"], summary["epochs"]) == ("running", 2)
    assert summary["validation_accuracy"] is not None
    assert f"qtool train {run}/recipe.yaml --run-dir {run} --resume" in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_digits_recipe_reaches_its_accuracy(tmp_path):
    trained = pipeline.train(ROOT_RECIPE, run_dir=tmp_path / "run", device="cpu")
    converted = pipeline.convert(tmp_path / "run", device="cpu")
    exported = pipeline.export(tmp_path / "run", output=tmp_path / "m.onnx")

    assert trained.validation_accuracy >= 0.98
    after, before = (getattr(converted, f"validation_accuracy_{w}") for w in ("after", "before"))
    assert abs(after - before) <= 1 / 500
    assert exported.top1_agreement >= 0.995
    assert exported.bits_per_weight_on_disk <= 4.3


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["layer_inputs", "every_value"])
@pytest.mark.parametrize("way", ["plain", "compile", "cuda_graph"])
def test_training_on_cuda_gives_a_run_that_converts_and_exports(tmp_path, way, place):
    path = write(tmp_path, RECIPE)
    chosen = [f"quantization.activations.place={place}"]
    chosen += [] if way == "plain" else [f"training.{way}=true"]
    trained = pipeline.train(path, run_dir=tmp_path / "run", assignments=chosen, device="cuda")
    converted = pipeline.convert(tmp_path / "run", device="cuda")
    exported = pipeline.export(tmp_path / "run", output=tmp_path / "m.onnx")

    assert trained.validation_accuracy > 0.93
    after, before = (getattr(converted, f"validation_accuracy_{w}") for w in ("after", "before"))
    assert abs(after - before) <= 1 / 500
    assert exported.top1_agreement >= 0.995
