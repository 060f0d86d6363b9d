"""The table of known limits: whoever refuses a network says so in its words, and each is met."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.conversion import parts
from qtool.errors import ModelError, QtoolError
from qtool.integer.converted import converted_state
from qtool.limit import Limit
from qtool.limits import LIMITS
from tests.conversion import test_norms as norms
from tests.quantizers import test_door as door
from tests.quantizers import test_modes as modes
from tests.quantizers import test_rules as rules

QTOOL = Path(__file__).parent.parent / "qtool"
ROOMS = ("quantizers", "conversion", "export")
# what is raised there that is no limit of networks, file by file
OTHER_ERRORS = {
    "quantizers/state.py": "a checkpoint that cannot be read",
    "quantizers/door/finite.py": "numbers that are not finite",
    "quantizers/door/given.py": "scales that the settings give",
    "quantizers/control.py": "an argument that is wrong",
    "quantizers/relu.py": "a mistake of our own",
    "quantizers/fake_quantize.py": "a mistake of our own",
    "quantizers/places/relu_outputs.py": "an argument that is missing",
    "quantizers/places/rules.py": "patterns that match no site",
    "quantizers/places/wanted.py": "overrides that do not go with the rest",
    "quantizers/prepare.py": "patterns that match no layer",
    "conversion/proof.py": "what the proof found",
    "conversion/outputs.py": "what the proof found",
    "conversion/numbers.py": "numbers that are not finite",
    "conversion/compared.py": "what the proof found",
    "conversion/difference.py": "what the proof found",
    "conversion/parts.py": "what training has to do first",
    "conversion/to_integer.py": "an argument that is missing",
    "export/proof/agreement.py": "what the check of a file found",
    "export/proof/site_codes.py": "what the check of a file found",
    "export/proof/why_slow.py": "what a strict export found",
    "export/targets/onnxruntime_static.py": "what the runtime says of itself",
    "export/reading.py": "a file that is damaged, or too large for what it says",
    "export/proof/damage.py": "a file that is damaged",
    "export/proof/stored_weights.py": "a file that is damaged",
    "export/writing/wire.py": "a file that is damaged",
    "export/writing/request.py": "options that do not go together",
    "export/writing/sizes.py": "why a size stays fixed, which is said in a note",
    "export/proof/gate.py": "what the check of a file found",
    "export/proof/measure.py": "what the check of a file found",
    "export/writing/packing.py": "a mistake of our own",
    "export/writing/native.py": "codes that a type of the target does not hold",
    "export/writing/layer_metadata.py": "metadata that other tools damaged",
    "export/repair/repaired.py": "a file that cannot be repaired",
    "export/targets/qonnx.py": "what the reader has no form for",
    "export/targets/onnxruntime.py": "a file that is not one",
    "export/targets/target.py": "a runtime that is not there",
    "export/targets/openvino.py": "a file that is not one, or that another runtime is for",
    "export/proof/ends.py": "what the check of a file found",
    "export/proof/latency.py": "what the runtime says of itself",
    "export/writing/saved.py": "a file of a size that ONNX has no form for",
    "export/writing/ends.py": "how pictures are prepared",
    "export/writing/saturation.py": "a model that was converted for another runtime",
    "export/proof/unrounded.py": "a file that does not tell its float network",
}
# met by tests of their own: a runtime has to be asked, or what stands at calls to be installed
ELSEWHERE = {
    "FLOAT_IN_STATE": ("quantizers/test_modes.py", "the state that was loaded has it float"),
    "QUANTIZED_ANEW": ("export/test_float_weights.py", "quantizes the float weight anew"),
    "OTHER_WEIGHTS": ("export/test_float_weights.py", "does not compute with the weights"),
    "NOT_EXPRESSED": ("export/test_export.py", r"torch\.onnx cannot express the model"),
    "NO_LONGER_HARDSWISH": ("conversion/test_sites.py", "hardsigmoid is no clip"),
    "SHIFT_TOO_LARGE": ("conversion/test_sites.py", "its shift does not fit into int32"),
    "OTHER_PATH": ("graph/test_frames.py", "takes another path"),
    "TAKEN_SITES": ("graph/test_frames.py", "has an attribute `sites` of its own"),
    "NO_SUBCLASS": ("graph/test_frames.py", "no subclass can be made of"),
}


def raised_beside(path: Path) -> Iterator[int]:
    """Yield the lines of a file that raise something in words that are not of the table."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Raise) or node.exc is None:
            continue
        parts_of = list(ast.walk(node.exc))
        attributes = [part.attr for part in parts_of if isinstance(part, ast.Attribute)]
        spoken = {"error", "text"} & set(attributes)
        if not spoken and not isinstance(node.exc, ast.Name):
            yield node.lineno


def test_every_refusal_of_a_network_is_in_words_of_the_table() -> None:
    found = {
        str(path.relative_to(QTOOL)): lines
        for room in ROOMS
        for path in sorted((QTOOL / room).rglob("*.py"))
        if (lines := list(raised_beside(path)))
    }
    new = {name: lines for name, lines in found.items() if name not in OTHER_ERRORS}
    assert new == {}, "say it in qtool/limits.py, or here that it is no limit of networks"


def test_every_limit_is_used() -> None:
    code = "\n".join(p.read_text() for p in QTOOL.rglob("*.py") if p.name != "limits.py")
    assert [name for name in LIMITS if f"limits.{name}" not in code and name not in code] == []


def test_no_two_limits_are_told_apart_by_names_alone() -> None:
    texts = [limit.says for limit in LIMITS.values()]
    assert len(set(texts)) == len(texts)


class ShiftedNorm(nn.Module):
    """A norm that reads a second value."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, input: Tensor, by: Tensor | float = 0.0) -> Tensor:
        return input * self.gain + by


class OddNorm(nn.Module):
    """A norm that reads its layer and a second value."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other, self.norm = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), ShiftedNorm()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x), self.other(x)).mean((2, 3))


class Tokens(nn.Module):
    """A norm over the tokens, not over the features of the layer before it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 7), nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.linear(x.mean(2)))


class Auxiliary(nn.Module):
    """A head that only training calls, a weight that is used past its layer, odd layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.side, self.past = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 4)
        self.odd, self.deep = door.Head(4, 4), nn.Bilinear(4, 4, 4)
        self.own, self.chosen, self.centred = Matrix(), nn.Linear(4, 2), Centred(4, 4)
        self.attention = modes.OwnAttention(4, 2, batch_first=True)
        self.table, self.of_table = nn.Parameter(torch.ones(1, 2)), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((1, 2))
        y = self.body(x) + (self.side(x) if self.training else 0)
        y = (
            y
            + self.of_table(self.table)
            + self.attention(y[:, None], y[:, None], y[:, None])[0][:, 0]
        )
        y = self.odd(nn.functional.linear(y, self.past.weight))
        return self.chosen(self.own(self.centred(self.deep(y, y))))


class Centred(nn.Linear):
    """A layer whose weight has no mean, and which changes its input."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input.tanh(), self.weight - self.weight.mean(), self.bias)


class Matrix(nn.Module):
    """A matrix product of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


def places(place: str) -> dict[str, dict[str, object]]:
    """Return a section that quantizes activations alone, with one place."""
    return {"activations": {"bits": 8, "place": place}}


def refused() -> Iterator[str]:
    """Yield what is said of networks and examples that are refused."""
    kinds = [make for make, _ in door.KINDS.values()]
    made_anew = [lambda wrap=wrap: door.net(wrap) for wrap, _ in door.MADE_ANEW.values()]
    norm = door.net()
    door.pruned(norm[3])
    half, nothing = door.net(), door.net()
    half[7].half()
    given = [
        *((make(), door.IMAGES) for make in [*kinds, *made_anew]),
        (norm, door.IMAGES),
        (half, None),
        (nothing[3:7], None),
        (nn.Sequential(nn.LazyLinear(2)), None),
        (torch.jit.script(nn.Sequential(nn.Linear(3, 2))), None),
        (door.net(), door.IMAGES[:0]),
        (door.net(), 0 * door.IMAGES),
        (door.net(), door.IMAGES[:, :2]),
        (door.Silent(), door.IMAGES),
    ]
    for model, example in given:
        with pytest.raises(ModelError) as refusal:
            qtool.prepare(model, door.BOTH, example)
        yield str(refusal.value)
    for make, _ in rules.REFUSED.values():
        with pytest.raises(ModelError) as refusal:
            make()
        yield str(refusal.value)
    of_relus = qtool.prepare(door.net(), places("relu_outputs"), door.IMAGES)
    with pytest.raises(ModelError) as refusal:
        qtool.prepare(door.net(), places("layer_inputs")).load_state_dict(of_relus.state_dict())
    yield str(refusal.value)


def left_float() -> Iterator[str]:
    """Yield why layers are left float."""
    chosen = {"overrides": [{"match": "chosen", **door.FLOAT}]}
    model = qtool.prepare(Auxiliary().train(), door.BOTH | chosen, door.IMAGES)
    yield from converted_state(qtool.convert(model.eval())).left_float.values()
    for make, _, _ in rules.STAYS_FLOAT.values():
        placement = make()
        yield from placement.float_joins.values()
        yield from placement.without_quantizer.values()


def not_folded(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield why norms are not folded."""
    nets = [norms.lively(norms.Net(build)) for build, _ in norms.KEPT.values()]
    nets += [norms.lively(norms.Flow(flow)) for flow, _, _ in norms.CONNECTED.values()]
    nets += [norms.lively(OddNorm()), norms.lively(Tokens())]
    images = norms.IMAGES[:, :, :3]
    for net in nets:
        images = norms.IMAGES[:, :, :3] if isinstance(net, Tokens) else norms.IMAGES
        yield from converted_state(norms.converted(net, images)[1]).not_folded.values()
    float_weights = {"match": "conv1", "weights": None}
    full = {"bits": 4, "grid": "full"}
    for changes in ({"overrides": [float_weights]}, {"weights": full}):
        model = qtool.prepare(norms.lively(norms.Net(nn.BatchNorm2d)), norms.BOTH | changes)
        model(norms.IMAGES)
        model.get_parameter("norm1.weight").data.fill_(-1.0)
        if "weights" in changes:
            model.get_parameter("conv1.weight_quantizer.scale").data.fill_(0.01)
        yield from converted_state(qtool.convert(model)).not_folded.values()
    monkeypatch.setattr(parts, "foldable", lambda model, norm: None)  # what should not happen
    model = qtool.prepare(norms.lively(norms.Net(nn.BatchNorm2d)), norms.BOTH, norms.IMAGES)
    yield from converted_state(qtool.convert(model)).not_folded.values()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_every_limit_is_met_by_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "refused": list(refused()),
        "left float": list(left_float()),
        "not folded": list(not_folded(monkeypatch)),
    }

    def met(limit: Limit) -> bool:
        return any(limit.fits(text) for text in texts[limit.outcome])

    missing = [name for name, limit in LIMITS.items() if not met(limit) and name not in ELSEWHERE]
    assert missing == [], "add a network that meets it"
    for outcome, said in texts.items():
        of_it = [limit for limit in LIMITS.values() if limit.outcome == outcome]
        for text in said:
            assert any(limit.fits(text) for limit in of_it), text


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_needs_more_is_met_elsewhere(name: str) -> None:
    file, words = ELSEWHERE[name]
    names = re.findall(r"{(\w+)}", LIMITS[name].says + LIMITS[name].do)
    assert words in (Path(__file__).parent / file).read_text()
    assert re.search(words, LIMITS[name].text(**dict.fromkeys(names, "weight")))


def test_a_refusal_is_an_error_for_python_and_for_the_command_line() -> None:
    error = LIMITS["LAZY"].error(layer="fc")
    assert isinstance(error, ValueError)
    assert isinstance(error, QtoolError)
    assert error.exit_code == 2


@cache
def document() -> str:
    return (QTOOL / "quantizers" / "README.md").read_text()


@pytest.mark.parametrize("name", LIMITS)
def test_every_limit_stands_in_the_document(name: str) -> None:
    literal = max(LIMITS[name].says.replace("{", "}").split("}")[::2], key=len)
    assert literal.strip() in document()


@pytest.mark.parametrize("name", [n for n, limit in LIMITS.items() if not limit.refuses])
def test_what_to_do_about_a_sentence_is_told_from_the_sentence_alone(name: str) -> None:
    limit = LIMITS[name]
    words = {word: f"the {word}" for word in re.findall(r"\{(\w+)\}", limit.says)}

    assert limit.advice(limit.text(**words)) == limit.do.format(**words)
    assert limit.advice("another sentence") == ""
