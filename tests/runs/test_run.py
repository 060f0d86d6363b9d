"""A run: each of its parts is built once, and only when it is asked for."""

from pathlib import Path

import pytest
import torch

from qtool import pipeline, uses
from qtool.errors import InputError
from qtool.quantizers.weights import WeightQuantizer
from qtool.runs.built import build
from qtool.runs.converted.integer import Integer, up_to_date_integer
from qtool.runs.converted.quantized import Quantized, quantized_from
from qtool.runs.epochs import start_or_resume
from qtool.runs.kept import checkpoint
from qtool.runs.kept.folder import RunFolder
from qtool.runs.run import Run
from tests.kit import write_recipe

CPU = torch.device("cpu")
SEARCHED = {"quantization.weights.range": {"name": "mse", "candidates": 7}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    pipeline.train(write_recipe(folder, SEARCHED), run_dir=folder / "run", device="cpu")
    return folder / "run"


def counted(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> list[str]:
    """Return a list that grows with every call of a function."""
    calls: list[str] = []
    original = getattr(owner, name)

    def counting(*args, **kwargs):
        calls.append(name)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


def test_a_run_builds_its_parts_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = counted(monkeypatch, checkpoint, "load")
    loads = counted(monkeypatch, build, "make_data")
    run = Run.open(trained, CPU)
    assert reads == loads == []
    for _ in range(2):
        assert run.model is run.model
        assert run.network is run.network
        assert run.data is run.data
    assert (len(reads), len(loads)) == (1, 1)


def test_the_first_images_are_decoded_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Run.open(trained, CPU).data
    passes = counted(monkeypatch, data.train, "batches")
    assert data.first_images is data.first_images
    assert len(passes) == 1
    assert torch.equal(data.first_images, next(iter(data.train.batches(0)))[0])


def test_scales_that_a_checkpoint_replaces_are_not_searched(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = counted(monkeypatch, WeightQuantizer, "fit")
    model = Run.open(trained, CPU).model
    kept = torch.load(trained / "checkpoint.pt", weights_only=True)["model"]
    assert searches == []
    for name, value in model.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, kept[name]), name
    uses.inspect(trained)
    assert searches == []


def test_a_run_that_goes_on_searches_no_scale_before_its_first_step(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches = counted(monkeypatch, WeightQuantizer, "fit")
    run = Run.open(trained, CPU)
    run.restore(run.trainer())
    assert searches == []


def test_a_resumed_training_does_not_hold_its_checkpoint_too(trained: Path) -> None:
    run = Run.open(trained, CPU)
    trainer, architecture = start_or_resume(run)
    assert len(trainer.history) == 1
    assert {"checkpoint", "network"}.isdisjoint(vars(run))
    assert run.checkpoint.architecture == architecture  # read anew where it is asked for


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a run folder, it has no recipe\.yaml"):
        Run.open(tmp_path, CPU)


def test_what_is_converted_is_a_run_or_a_recipe(trained: Path, tmp_path: Path) -> None:
    of_run = quantized_from(trained, None, CPU)
    of_recipe = quantized_from(write_recipe(tmp_path, SEARCHED), tmp_path / "i.safetensors", CPU)
    assert (of_run.path, of_run.folder) == (trained / "integer.safetensors", None)
    assert of_run.float_accuracy is None
    assert of_recipe.path == tmp_path / "i.safetensors"
    assert of_recipe.float_accuracy is not None
    assert [len(part) for part in of_recipe.proof_images()] == [32, 32]


def test_an_integer_model_is_made_anew_only_where_it_is_missing_or_old(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = counted(monkeypatch, Quantized, "keep")
    path = up_to_date_integer(trained, pipeline.convert)
    assert path == RunFolder(trained).integer == up_to_date_integer(trained, pipeline.convert)
    assert up_to_date_integer(path, pipeline.convert) == path
    assert len(asked) == 1
    opened = Integer.open(path)
    assert opened.data is opened.data
    assert opened.about()["recipe"] == Run.open(trained, CPU).recipe.as_dict()
