"""Networks with several inputs and outputs, and layers called twice: exported by name."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.errors import ExportError
from qtool.export.proof import gate
from qtool.export.proof.lint import lint
from qtool.export.targets.onnxruntime import OnnxRuntime
from qtool.export.writing.names import named_inputs, named_outputs
from qtool.export.writing.onnx_qdq import export_onnx
from qtool.export.writing.trace import first_line
from qtool.graph.inputs import Inputs

SECTION = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "layer_inputs"}}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


class Pair(nn.Module):
    """Two inputs and a number; gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 16), nn.Linear(6, 16), nn.Linear(16, 5)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        features = (self.a(left) + self.b(right)).relu()
        return {"classes": self.head(features) * scale, "right": features}


@dataclass
class Found:
    logits: Tensor
    pooled: Tensor


class Words(nn.Module):
    """Integers by keyword, and a mask; gives a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.head = nn.Embedding(20, 8), nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, ids: Tensor, *, mask: Tensor) -> Found:
        x = self.table(ids) * mask[..., None].float()
        return Found(self.head(self.up(x).relu().mean(1)), x.mean(1))


class Any3(nn.Module):
    """*args; gives a tuple in a tuple, one layer called for each input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, *parts: Tensor) -> tuple[Tensor, list[Tensor]]:
        total = torch.stack([self.a(part) for part in parts]).sum(0)
        return total, [self.head(total.relu())]


class Outputs(OrderedDict[str, object]):
    """What libraries return: a dict of a class of their own."""


class Both(nn.Module):
    """*args, and a mask by keyword alone; gives a dict of its own class, with a list in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, *parts: Tensor, mask: Tensor, flag: bool = True) -> Outputs:
        x = self.a(sum(parts) * mask).relu()
        return Outputs(logits=self.head(x), hidden=[x] if flag else None, loss=None)


class Bytes(nn.Module):
    """Images of uint8, which the network itself makes float."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.float() / 255).relu().mean((2, 3)))


class Twice(nn.Module):
    """A convolution under two names, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)
        self.alias = self.conv

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.alias(self.conv(x).relu()).relu().mean((2, 3)))


IDS = torch.randint(0, 20, (4, 7), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randint(0, 256, (4, 3, 6, 6), generator=torch.Generator().manual_seed(0))
# network, example, names of inputs, names of outputs
CASES: dict[str, tuple[Callable[[], nn.Module], object, list[str], list[str]]] = {
    "by position": (
        Pair, (random(4, 8), random(4, 6)), ["left", "right"], ["classes", "output_right"],
    ),
    "by keyword": (
        Words,
        {"mask": torch.ones(4, 7), "ids": IDS},
        ["mask", "ids"],
        ["logits", "pooled"],
    ),
    "any number": (
        Any3,
        (random(4, 8), random(4, 8), random(4, 8)),
        ["input_0", "input_1", "input_2"],
        ["output_0", "output_1_0"],
    ),
    "by position and by keyword": (
        Both,
        Inputs((random(4, 8), random(4, 8)), {"mask": torch.ones(4, 1)}),
        ["input_0", "input_1", "mask"],
        ["logits", "hidden_0"],
    ),
    "one row": (Pair, (random(1, 8), random(1, 6)), ["left", "right"], ["classes", "output_right"]),
    "bytes": (Bytes, PIXELS.to(torch.uint8), ["images"], ["logits"]),
    "called twice": (Twice, random(4, 3, 6, 6), ["images"], ["logits"]),
    "itself a layer": (lambda: nn.Conv2d(3, 4, 3), random(4, 3, 6, 6), ["images"], ["logits"]),
}  # fmt: skip


def converted(net: nn.Module, example: object) -> nn.Module:
    model = qtool.prepare(net.eval(), SECTION, example)
    qtool.calibrate(model, [example])
    return qtool.convert(model.eval(), [example])


QUICK = ("by position", "by keyword", "called twice", "itself a layer")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in CASES],
)
def test_inputs_and_outputs_have_names_and_an_open_batch(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    make, example, inputs, outputs = CASES[name]
    integer = converted(make(), example)
    path = tmp_path / "m.onnx"
    described = qtool.export_onnx(integer, example, path)

    session = OnnxRuntime().open(path)
    assert (described["inputs"], described["outputs"]) == (inputs, outputs)
    assert session.inputs == inputs
    assert lint(onnx.load(str(path))) == []
    for rows in (1, 3):
        batch = Inputs.of(example).each(
            lambda t, n=rows: t.repeat(3, *[1] * (t.ndim - 1))[:n]  # not the batch of the example
        )
        expected = named_outputs(batch.call(integer))
        given = gate.run_named(session, named_inputs(integer, batch))
        assert list(given) == outputs
        for one, other in zip(expected.values(), given.values(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_holds_for_every_input_and_is_filled_up(tmp_path: Path) -> None:
    make, example, _, _ = CASES["by position"]
    integer = converted(make(), example)
    export_onnx(integer, example, tmp_path / "f.onnx", batch=3)

    session, batch = OnnxRuntime().open(tmp_path / "f.onnx"), Inputs.of(example)
    assert session.batch == 3
    shapes = [
        [d.dim_value for d in one.type.tensor_type.shape.dim]
        for one in onnx.load(str(tmp_path / "f.onnx")).graph.input
    ]
    assert shapes == [[3, 8], [3, 6]]
    expected = named_outputs(batch.call(integer))
    given = gate.run_named(session, named_inputs(integer, batch))  # four rows
    torch.testing.assert_close(given["classes"], expected["classes"], rtol=1e-4, atol=1e-5)


class ByLength(nn.Module):
    """Reshapes by the length of the batch, or by a number that is made of it."""

    def __init__(self, length: Callable[[Tensor], int]) -> None:
        super().__init__()
        self.fc, self.length = nn.Linear(48, 5), length

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(self.length(x), -1))


def test_the_length_of_a_tensor_leaves_the_batch_open_and_a_number_made_of_it_is_named(
    tmp_path: Path,
) -> None:
    example = random(4, 3, 4, 4)
    described = [
        qtool.export_onnx(converted(ByLength(length), example), example, tmp_path / name)
        for name, length in (("open", lambda x: len(x)), ("fixed", lambda x: int(x.shape[0])))
    ]
    batches = [OnnxRuntime().open(tmp_path / name).batch for name in ("open", "fixed")]

    assert batches == [None, 4]
    assert "notes" not in described[0]
    assert "images: the batch is fixed" in described[1]["notes"][0]


class Point(NamedTuple):
    x: Tensor
    y: Tensor


def test_what_lies_deeper_adds_its_key_or_place() -> None:
    a, b = random(1), random(2)

    assert list(named_outputs(Point(a, b))) == ["x", "y"]
    assert list(named_outputs({"boxes": [a, b], "size": 3})) == ["boxes_0", "boxes_1"]
    assert list(named_outputs({"a": {"b_c": a}, "a_b": {"c": b}})) == ["a_b_c", "a_b_c_"]
    assert list(named_outputs((a,))) == ["logits"]
    assert list(named_outputs({"out": a})) == ["out"]
    assert named_outputs(None) == {}


class Exponential(nn.Module):
    """An operator that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.linalg.matrix_exp(x[:, 0]).mean(1))


class Branching(nn.Module):
    """A branch that depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, 0, 0]
        return self.fc(x) if float(x.sum()) > 0 else self.fc(-x)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Exponential, r"the model: aten\.linalg_matrix_exp\.default in 1: No ONNX function"),
        (Branching, r"the model: 1: Could not guard on data-dependent expression"),
    ],
)
def test_what_onnx_cannot_express_is_named_with_its_layer(
    tmp_path: Path, part: type[nn.Module], message: str
) -> None:
    integer = converted(nn.Sequential(nn.Conv2d(3, 3, 1), part()), random(4, 3, 6, 6))

    with pytest.raises(ExportError, match=f"torch.onnx cannot express {message}") as raised:
        qtool.export_onnx(integer, random(4, 3, 6, 6), tmp_path / "m.onnx")
    assert "\n" not in str(raised.value)
    assert "operators that ONNX has" in str(raised.value)


class NotOnnx(nn.Module):
    """Fails while it is traced, with colours, as torch.onnx itself writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            raise ValueError("\x1b[96mThis is step 1/3\x1b[0m of it\n- Modify the model code")
        return self.fc(x[:, 0, 0])


def test_what_torch_says_is_told_in_one_line_without_colours(tmp_path: Path) -> None:
    integer = converted(nn.Sequential(nn.Conv2d(3, 3, 1), NotOnnx()), random(4, 3, 6, 6))

    with pytest.raises(ExportError) as raised:
        qtool.export_onnx(integer, random(4, 3, 6, 6), tmp_path / "m.onnx")
    said = "torch.onnx cannot express the model: 1: This is step 1/3 of it; write that part with"
    assert str(raised.value).startswith(said)


def test_the_error_itself_follows_what_torch_says_of_its_own_code() -> None:
    error = RuntimeError(
        "Failed to export the model. \x1b[96mThis is step 1/3\x1b[0m.\n"
        "- Modify the model code\n\n## Exception summary\n\n"
        "<class 'torch.x.UserError'>: no.\n\n(Refer to the full stack trace above.)"
    )
    assert first_line(error) == "UserError: no"
    assert first_line(ValueError()) == "ValueError()"
