"""The gate: what it judges, what it cannot judge, and that it says which."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qtool.errors import ExportError
from qtool.export.proof.agreement import Compared, compare_outputs
from qtool.export.proof.gate import run_named
from qtool.export.targets.target import Array
from qtool.reports.results import Export
from qtool.reports.tables import show_export

IMAGES = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(20) % 4


class Shown:
    """A session that gives what a function makes of its input."""

    batch: int | None = None

    def __init__(self, model: nn.Module, change: float) -> None:
        self._model, self._change = model, change
        self.inputs = ["images"]

    def run(self, given: Mapping[str, Array]) -> dict[str, Array]:
        output = self._model(torch.from_numpy(given["images"]))
        named = output if isinstance(output, dict) else {"logits": output}
        return {k: np.asarray(v.numpy() + self._change) for k, v in named.items()}

    def constants(self, names: list[str]) -> list[Array]:
        return []


class Gives(nn.Module):
    """A function as a model."""

    def __init__(self, function: object) -> None:
        super().__init__()
        assert callable(function)
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


def compared(
    function: object, change: float = 0.0, images: Tensor = IMAGES, labels: Tensor = LABELS
) -> Compared:
    model = Gives(function)
    return compare_outputs(Shown(model, change), model, [(images, labels)])


def test_logits_are_judged_by_their_top_class() -> None:
    found = compared(lambda x: x)

    assert found.agreement.top1_agreement == 1.0
    assert (found.unproven, found.notes, found.agreement.disagreement) == ("", [], "")
    assert found.agreement.accuracy_runtime is not None
    assert list(found.outputs) == ["logits"]


@pytest.mark.parametrize("constant", [[0.0, 0.0, 0.0], [3.0, -1.0, 2.0]])
def test_one_constant_for_every_image_agrees_and_proves_nothing(constant: list[float]) -> None:
    logits = torch.tensor(constant)
    found = compared(lambda x: logits.expand(len(x), -1))

    assert found.agreement.disagreement == ""
    assert "says nothing about classes" in found.unproven
    assert found.agreement.top1_agreement is None
    assert found.agreement.clear_agreement is None


def test_another_constant_disagrees() -> None:
    found = compared(lambda x: torch.zeros(len(x), 3), change=0.01)

    assert "one constant" in found.agreement.disagreement


def test_one_image_alone_proves_little() -> None:
    found = compared(lambda x: x, images=IMAGES[:1], labels=LABELS[:1])

    assert "one image" in found.unproven
    assert found.agreement.images == 1


def test_without_an_image_nothing_is_proven() -> None:
    model = Gives(lambda x: x)
    for batches in ([], [(IMAGES[:0], LABELS[:0])]):
        with pytest.raises(ExportError, match="no images"):
            compare_outputs(Shown(model, 0.0), model, batches)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, :1],  # one class
        lambda x: x.reshape(len(x), 2, 2, 1).repeat(1, 1, 1, 3),  # a map
        lambda x: {"a": x, "b": 10 * x},  # several outputs
    ],
    ids=["one class", "a map", "several outputs"],
)
def test_what_is_no_logits_is_compared_as_numbers(function: object) -> None:
    same, near, far = (compared(function, change) for change in (0.0, 0.05, 0.2))

    assert same.agreement.top1_agreement is None
    assert "compared as numbers" in same.notes[0]
    assert same.unproven == ""
    assert (same.agreement.disagreement, near.agreement.disagreement) == ("", "")
    assert "in the median" in far.agreement.disagreement  # sigma is about 1


def test_labels_that_are_numbers_make_a_regression() -> None:
    found = compared(lambda x: x, labels=torch.rand(20))

    assert found.agreement.top1_agreement is None
    assert found.agreement.accuracy_runtime is None


def test_each_of_several_outputs_is_judged_and_the_worst_is_reported() -> None:
    found = compared(lambda x: {"small": x / 10, "large": 10 * x}, change=0.1)

    assert found.agreement.disagreement.startswith("small: ")
    assert "large" not in found.agreement.disagreement
    sigma = float((IMAGES / 10).double().std())
    assert found.outputs["small"].sigma == pytest.approx(sigma)
    assert found.agreement.sigma == pytest.approx(sigma)
    assert found.agreement.median_abs_difference == pytest.approx(0.1)


def test_an_output_of_another_shape_is_an_error() -> None:
    model = Gives(lambda x: x)
    with pytest.raises(ExportError, match=r"logits has the shape \[20, 2\], and \[20, 4\]"):
        compare_outputs(Shown(Gives(lambda x: x[:, :2]), 0.0), model, [(IMAGES, LABELS)])


def test_the_terminal_says_what_was_not_verified(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = Path(__file__).parents[1] / "golden" / "results" / "export.json"
    report = Export.read(path)
    show_export(report.model_copy(update={"unproven": "every image gives the same"}))
    out, err = capsys.readouterr()

    assert "exported, but not verified" in out
    assert "every image gives the same" in err
    show_export(report.model_copy(update={"unproven": ""}))
    assert "exported and verified" in capsys.readouterr().out


class Windows:
    """Takes four images at once, and makes three rows of each."""

    inputs, batch = ["images"], 4

    def run(self, given: Mapping[str, Array]) -> dict[str, Array]:
        images = given["images"]
        return {"windows": images.repeat(3, axis=0)}

    def constants(self, names: list[str]) -> list[Array]:
        return []


@pytest.mark.parametrize("images", [1, 4, 6])
def test_rows_of_windows_are_those_of_the_images(images: int) -> None:
    x = torch.arange(images * 2.0).reshape(images, 2)
    found = run_named(Windows(), {"images": x})
    assert torch.equal(found["windows"], x.repeat_interleave(3, 0))
