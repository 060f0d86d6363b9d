"""validation.npz: what a finished run's network says of each validation image."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qtool import pipeline
from qtool.errors import InputError
from qtool.reports.results import Summary
from qtool.runs.kept.answers import AnswerRecorder, Answers, read_answers
from qtool.runs.kept.folder import RunFolder
from qtool.runs.run import Run
from qtool.world.world import World
from tests.kit import write_recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("answers")
    pipeline.train(write_recipe(folder), run_dir=folder / "run", device="cpu")
    return RunFolder(folder / "run")


def test_a_finished_run_keeps_what_its_network_says(trained: RunFolder) -> None:
    found = read_answers(trained)
    run = Run.open(trained.path, CPU)
    model, said, labels = run.model, list[Tensor](), list[Tensor]()
    for images, wanted in run.data.validation.batches(0):
        said.append(model(images).argmax(1))
        labels.append(wanted)

    assert found is not None
    assert found.prediction.dtype == np.uint16
    assert np.array_equal(found.prediction, torch.cat(said).numpy())
    assert np.array_equal(found.right, (torch.cat(said) == torch.cat(labels)).numpy())
    assert found.right.mean() == pytest.approx(Summary.read(trained.summary).validation_accuracy)
    assert found.label is not None
    assert np.array_equal(found.label, torch.cat(labels).numpy())
    with np.load(trained.answers) as file:
        assert sorted(file) == ["images", "label", "prediction", "right"]
        assert file["right"].nbytes == -(-len(found.right) // 8)


def test_a_run_that_was_stopped_after_its_last_epoch_is_asked_again(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("qtool.runs.train._end", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.train(path, run_dir=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run" / "validation.npz").exists()
    pipeline.train(path, run_dir=tmp_path / "run", device="cpu", resume=True)
    assert (tmp_path / "run" / "validation.npz").read_bytes() == trained.answers.read_bytes()


def test_what_goes_on_has_no_answers_of_an_earlier_epoch(
    trained: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path)
    pipeline.train(path, run_dir=tmp_path / "run", device="cpu")
    longer = write_recipe(tmp_path, {"training.epochs": 2})

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qtool.training.loop.Trainer.fit", stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.train(longer, run_dir=tmp_path / "run", device="cpu", resume=True)
    assert not (tmp_path / "run" / "validation.npz").exists()


def test_where_labels_are_numbers_there_are_no_answers() -> None:
    recorder = AnswerRecorder()
    recorder.validated(torch.randn(3, 1), torch.randn(3, 1))
    recorder.end_epoch(1, 1)
    assert recorder.found(World()) is None


class Two(World):
    """Two processes, of which the other one has said its word already."""

    def __init__(self, rank: int, words: list[str]) -> None:
        self.rank, self.size, self.words = rank, 2, words

    def told(self, word: str) -> list[str]:
        self.words[self.rank] = word
        return self.words if self.rank == 0 else [word, word]


def test_rows_of_two_processes_come_together_in_the_order_of_their_batch() -> None:
    labels = torch.randint(0, 5, (9,), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot((labels + 1) % 5, 5).float()
    words, found = ["[]", "[]"], None
    for rank in (1, 0):  # the first process is told what the other one has said before
        recorder = AnswerRecorder()
        for start in (0, 4, 8):  # the last batch has one row, and the second process none
            mine = slice(start + rank, start + 4, 2)
            if len(labels[mine]):
                recorder.validated(logits[mine], labels[mine])
        recorder.end_epoch(1, 1)
        found = recorder.found(Two(rank, words))
    assert found is not None
    assert found[0].tolist() == ((labels + 1) % 5).tolist()
    assert found[1].tolist() == labels.tolist()


def test_many_classes_take_wider_numbers(tmp_path: Path) -> None:
    said = torch.tensor([0, 70_000])
    answers = Answers.of(said, torch.tensor([0, 1]), "x")
    assert answers.prediction.dtype == np.uint32
    answers.write(tmp_path / "validation.npz")
    found = read_answers(RunFolder(tmp_path))
    assert found is not None
    assert found.prediction.tolist() == [0, 70_000]
    assert found.right.tolist() == [True, False]


def _said(**changes: np.ndarray) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        good = {
            "right": np.packbits(np.ones(8, dtype=bool)),
            "prediction": np.zeros(8, dtype=np.uint16),
            "images": np.array("x"),
        }
        np.savez(path, **good | changes)

    return write


def _bomb(path: Path) -> None:
    _said()(path)
    header = np.lib.format.magic(1, 0)
    text = b"{'descr': '<u2', 'fortran_order': False, 'shape': (10000000000,), }"
    text += b" " * (118 - len(text) - 1) + b"\n"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("prediction.npy", header + len(text).to_bytes(2, "little") + text)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: path.write_bytes(b"PK\x03\x04 nothing"), "no zip archive"),
        (lambda path: path.write_bytes(b""), "damaged"),
        (_said(prediction=np.zeros(8)), r"prediction is float64 \[8\]"),
        (_said(prediction=np.zeros((2, 4), dtype=np.uint16)), r"prediction is uint16 \[2, 4\]"),
        (_said(right=np.zeros(2, dtype=np.uint8)), r"right is uint8 \[2\] of 8 images"),
        (_said(images=np.zeros(3)), "images is no text"),
        (_said(images=np.array(["x", None], dtype=object)), "damaged"),
        (_bomb, "takes 20,000,000,000 bytes, as it says, and has 0"),
    ],
)
def test_a_damaged_file_is_refused_by_name(
    write: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    write(tmp_path / "validation.npz")
    with pytest.raises(InputError, match=rf"validation\.npz: damaged: .*{says}|{says}"):
        read_answers(RunFolder(tmp_path))


def test_answers_of_another_network_than_the_summary_s_are_refused(
    trained: RunFolder, tmp_path: Path
) -> None:
    (tmp_path / "summary.json").write_bytes(trained.summary.read_bytes())
    _said()(tmp_path / "validation.npz")
    with pytest.raises(InputError, match=r"right on 100\.0000%, and the run on"):
        read_answers(RunFolder(tmp_path))


def test_a_run_of_before_has_none(tmp_path: Path) -> None:
    assert read_answers(RunFolder(tmp_path)) is None
