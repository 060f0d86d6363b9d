"""How far rounding may move a file's outputs, and what of a disagreement that explains."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.export.proof.agreement import Compared, compare_outputs
from qtool.export.proof.control import Controls, Moved, controls_of, explained, finding
from qtool.export.proof.gate import run
from qtool.export.proof.verdict import with_codes, with_controls
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.targets.target import Array
from qtool.export.writing.onnx_qdq import export_onnx
from qtool.reports.exports import Agreement, Control
from tests.kit import float_net

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))
BATCHES: list[tuple[object, Tensor]] = [(IMAGES[:2], torch.zeros(2)), (IMAGES[2:], torch.zeros(3))]
RUNTIME = OnnxRuntime()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    section = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}
    integer = qtool.convert(qtool.prepare(float_net(), section, IMAGES))
    path = tmp_path_factory.mktemp("control") / "m.onnx"
    export_onnx(integer, IMAGES, path)
    return path, integer


class Linear(nn.Module):
    """Ten times its input, so that what moves it is known."""

    def forward(self, x: Tensor) -> Tensor:
        return 10 * x


class Session:
    """Gives what a model does, and something beside it."""

    inputs, batch = ["images"], None

    def __init__(self, beside: float, model: nn.Module | None = None) -> None:
        self._model, self._beside = model or Linear(), beside

    def run(self, given: Mapping[str, Array]) -> dict[str, Array]:
        x = torch.from_numpy(given["images"])
        return {"logits": np.asarray(self._model(x).numpy() + self._beside)}

    def constants(self, names: list[str]) -> list[Array]:
        return []


def test_one_control_is_the_file_on_an_input_that_is_nearly_the_same(
    written: tuple[Path, nn.Module],
) -> None:
    path, integer = written
    session = RUNTIME.open(path)
    compared = compare_outputs(session, integer, BATCHES)
    found = controls_of(session, None, integer, BATCHES, compared)
    moved = (run(session, IMAGES * (1 + 1e-5)) - run(session, IMAGES)).abs().amax(1)

    assert found is not None
    said = found.report
    assert (said.images, said.level_images, said.level_max_abs_difference) == (5, 0, None)
    assert said.max_abs_difference == float(moved.max())
    assert said.median_abs_difference == float(moved.median())
    assert found.outputs == {"logits": Moved(float(moved.median()), float(moved.max()))}
    assert controls_of(session, None, integer, [], compared) is None


@pytest.mark.parametrize(
    ("file", "plain", "counts"),
    [(0.5, 0.75, 0.25), (0.5, 0.125, 0.125), (0.5, 0.0, 0.0), (0.0, 0.5, 0.5)],
    ids=["both are off", "less without", "right without", "the file is right"],
)
def test_the_other_is_the_file_without_optimizations_as_far_as_that_is_no_nearer_the_model(
    file: float, plain: float, counts: float
) -> None:
    session, zero = Session(file), torch.zeros(4, 3)
    batches: list[tuple[object, Tensor]] = [(zero, torch.zeros(4, dtype=torch.int64))]
    compared = compare_outputs(session, Linear(), batches)
    found = controls_of(session, Session(plain), Linear(), batches, compared)

    assert found is not None
    assert found.report.max_abs_difference == 0  # zeros stay zeros
    assert found.report.level_images == 4
    assert found.report.level_median_abs_difference == counts
    assert found.outputs["logits"] == Moved(counts, counts)


def compared_at(change: float, *, images: int = 20) -> Compared:
    """Return a file that is off by a number compared with its model, of logits about 0.1 sigma."""
    x = torch.randn(images, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.rand(images)  # numbers: compared as such
    return compare_outputs(Session(change), Linear(), [(x, labels)])


def controls(median: float, largest: float) -> Controls:
    return Controls(
        Control(images=9, max_abs_difference=largest, median_abs_difference=median),
        {"logits": Moved(median, largest)},
    )


@pytest.mark.parametrize(
    ("moves", "disagrees"),
    [((0.5, 0.5), True), ((0.7, 0.7), False), ((0.7, 0.5), True), ((0.5, 0.7), True)],
    ids=["a fourth of it", "more than a third", "not at most", "not in the median"],
)
def test_a_difference_within_three_times_the_control_is_no_disagreement(
    moves: tuple[float, float], disagrees: bool
) -> None:
    broken = compared_at(2.0)  # sigma is 10
    assert broken.agreement.disagreement.startswith("logits: outputs differ by 2 in the median")
    judged = with_controls(broken, controls(*moves))

    assert bool(judged.agreement.disagreement) == disagrees
    assert ("no disagreement" in " ".join(judged.notes)) != disagrees
    said = judged.outputs["logits"].to_json()
    assert (said["control_difference"], said["control_max_difference"]) == moves
    assert list(said)[-2:] == ["control_difference", "control_max_difference"]


def test_what_agrees_by_the_rule_is_left_as_it_is_and_what_is_no_number_never_excused() -> None:
    fine = with_controls(compared_at(0.5), controls(0.0, 0.0))
    assert (fine.agreement.disagreement, fine.reasons) == ("", {})
    lost = with_controls(compared_at(float("nan")), controls(1e9, 1e9))
    assert "not finite" in lost.agreement.disagreement
    broken = compared_at(2.0)
    assert with_controls(broken, None) is broken


def test_a_control_that_is_no_number_explains_nothing() -> None:
    lost = torch.full((2, 3), float("nan"))
    assert Moved.of([(torch.zeros(2, 3), lost)]) == Moved()


def test_equal_codes_excuse_float_rounding_behind_them_and_no_more(
    written: tuple[Path, nn.Module],
) -> None:
    path, integer = written

    def judged(change: float, model: Path = path) -> Compared:
        off = Session(change, integer)
        found = compare_outputs(off, integer, BATCHES)
        rule = {"logits": "broken"}  # a rule that no rounding could keep
        said = found.agreement.model_copy(update={"disagreement": "broken"})
        broken = Compared(said, found.outputs, "", [], rule, shown="logits", pairs=found.pairs)
        return with_codes(broken, model, integer, lambda: BATCHES, RUNTIME)

    largest = float(integer(IMAGES).abs().max())
    excused = judged(1e-5 * largest)
    assert (excused.agreement.disagreement, excused.reasons) == ("", {})
    assert "the codes of all 3 quantized values are the integer model's" in excused.notes[0]
    assert judged(1e-3 * largest).reasons == {"logits": "broken"}

    bare = path.with_name("bare.onnx")
    export_onnx(integer, IMAGES, bare, annotate=False)
    assert judged(1e-5 * largest, bare).reasons == {"logits": "broken"}


def agreement(median: float, disagreement: str = "") -> Agreement:
    return Agreement(
        images=9,
        sigma=1.0,
        top1_agreement=1.0,
        clear_share=1.0,
        clear_agreement=1.0,
        max_abs_difference=median,
        median_abs_difference=median,
        accuracy_integer=None,
        accuracy_runtime=None,
        disagreement=disagreement,
    )


@pytest.mark.parametrize(
    ("median", "moves", "kinds"),
    [(0.5, 0.1, ["beyond_rounding"]), (0.5, 0.4, []), (5e-4, 0.0, []), (0.5, None, [])],
)
def test_what_a_control_does_not_explain_is_a_finding(
    median: float, moves: float | None, kinds: list[str]
) -> None:
    assert [found.kind for found in finding(agreement(median), moves)] == kinds


def test_a_disagreement_says_what_the_control_makes_of_it() -> None:
    assert explained(agreement(0.5), 0.1) == ""
    assert explained(agreement(0.5, "they differ"), None) == ""
    assert "rounding alone is not behind it" in explained(agreement(0.5, "they differ"), 0.1)
    assert "more than rounding could" in explained(agreement(0.15, "they differ"), 0.1)
    assert finding(agreement(0.5, "they differ"), 0.1) == []
