"""The form of a model's inputs: what an example fixes, and what a loader's batch gives in it."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qtool
from qtool.graph.inputs import Form, Inputs, inputs_from, map_tensors, tensors_in
from qtool.graph.recorder import KEPT
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.prepare import prepared_state

A, B, LABELS = torch.arange(6.0).reshape(2, 3), torch.ones(2, 4), torch.tensor([0, 1])
Pair = namedtuple("Pair", ["a", "b"])
BOTH = {"weights": {"bits": 4}, "activations": {"bits": 8, "place": "layer_inputs"}}


@dataclass
class Answer:
    logits: Tensor
    hidden: Tensor


class TwoInputs(nn.Module):
    """Takes an image and a vector, and answers in the form that it is told."""

    def __init__(self, form: str = "tuple") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.side, self.head = nn.Linear(5, 4), nn.Linear(4, 2)
        self.form = form

    def forward(self, image: Tensor, vector: Tensor, gain: float = 1.0) -> Any:
        hidden = self.norm(self.conv(image)).relu().mean((2, 3)) + gain * self.side(vector)
        logits = self.head(hidden)
        answers: dict[str, Any] = {
            "tuple": (logits, hidden),
            "dict": {"logits": logits, "hidden": hidden},
            "dataclass": Answer(logits, hidden),
        }
        return answers[self.form]


def images(seed: int, count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (count, 3, 6, 6), (count, 5)
    image, vector = (torch.randn(*shape, generator=generator) for shape in shapes)
    return image, vector


def same(given: Inputs, args: tuple[object, ...], kwargs: dict[str, object] | None = None) -> bool:
    kwargs = kwargs or {}
    assert len(given.args) == len(args)
    assert given.kwargs.keys() == kwargs.keys()
    pairs = [*zip(given.args, args, strict=True), *((given.kwargs[k], kwargs[k]) for k in kwargs)]
    return all(a is b for a, b in pairs)


@pytest.mark.parametrize(
    ("example", "batch", "args", "kwargs"),
    [
        (A, A, (A,), {}),
        (A, (A, LABELS), (A,), {}),
        (A, [A, LABELS], (A,), {}),
        (A, Pair(A, LABELS), (A,), {}),
        ((A, B), (A, B), (A, B), {}),
        ((A, B), [A, B, LABELS], (A, B), {}),
        ([A, B], (A, B, LABELS), (A, B), {}),
        ((A,), [A, LABELS], (A,), {}),
        ({"x": A}, {"x": A, "y": LABELS}, (), {"x": A}),
        ({"x": A, "mask": B}, {"y": LABELS, "mask": B, "x": A}, (), {"x": A, "mask": B}),
    ],
)
def test_a_batch_gives_what_the_example_has(
    example: Any, batch: Any, args: Any, kwargs: dict[str, Any]
) -> None:
    assert same(Form.of(example).take(batch), args, kwargs)


@pytest.mark.parametrize(
    ("example", "batch", "said"),
    [
        (A, {"x": A}, "a dict with the keys 'x'; by the example it must be a tensor, or a tuple"),
        (A, [], "an empty list; by the example it must be a tensor"),
        (A, ((A, B), LABELS), "input 0 of a batch is a tuple of Tensor, Tensor, not a tensor"),
        ((A, B), A, "a Tensor; by the example it must be a tuple or list that begins with 2"),
        ((A, B), (A,), "a tuple of Tensor; by the example it must be a tuple or list"),
        ((A, B), ((A, B), LABELS), "input 0 of a batch is a tuple of Tensor, Tensor, not a"),
        ({"x": A}, A, "a Tensor; by the example it must be a dict with the keys 'x'"),
        (
            {"x": A, "mask": B},
            {"x": A, "y": B},
            "lacks 'mask': it is a dict with the keys 'x', 'y'",
        ),
        ({"x": A}, {"x": 3}, "x of a batch is a int, not a tensor"),
    ],
)
def test_a_batch_of_another_form_is_named(example: Any, batch: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Form.of(example).take(batch)


@pytest.mark.parametrize("example", ["images", 3, [], (), {}, {1: A}, (3, "a"), iter([A])])
def test_what_is_no_example_is_named(example: Any) -> None:
    with pytest.raises(
        ValueError, match=r"example is .*; give one batch of inputs: a tensor, a tu"
    ):
        Inputs.of(example)


def test_only_what_is_as_long_as_the_batch_is_shortened_and_it_is_copied() -> None:
    state, ids = torch.zeros(2, 6, 4), torch.arange(6)
    given = Inputs((torch.rand(6, 3), [ids, {"state": state}], 2.5), {"on": True, "m": ids})
    short = given.first(4)
    x, pair, gain = short.args
    assert isinstance(x, Tensor)
    assert torch.equal(x, given.tensors[0][:4])
    assert x.untyped_storage().data_ptr() != given.tensors[0].untyped_storage().data_ptr()
    assert isinstance(pair, list)
    assert pair[0].tolist() == [0, 1, 2, 3]
    assert pair[1]["state"].shape == (2, 6, 4)
    assert (gain, short.kwargs["on"]) == (2.5, True)
    assert [len(t) for t in short.tensors] == [4, 4, 2, 4]


def test_inputs_go_to_a_device_as_a_whole() -> None:
    given = Inputs((A, (B, 1)), {"answer": Answer(A, B)}).to(torch.device("meta"))
    assert {tensor.device.type for tensor in given.tensors} == {"meta"}
    assert len(given.tensors) == 4


def test_tensors_are_found_in_whatever_holds_them() -> None:
    found = list(tensors_in({"a": (A, [B]), "b": Answer(LABELS, A), "c": Pair(B, None), "d": 1}))
    assert [id(t) for t in found] == [id(t) for t in (A, B, LABELS, A, B)]


def test_classes_of_dicts_lists_and_tuples_that_torch_does_not_know_are_looked_into() -> None:
    class Outputs(OrderedDict[str, object]):
        pass

    class Boxes(list[object]):
        pass

    class Pair(tuple[object, ...]):
        pass

    a, b, c = torch.zeros(1), torch.ones(2), torch.ones(3)
    given = Outputs(logits=a, more=Boxes([b, Pair((c, "name"))]), none=None)
    assert list(map(id, tensors_in({"x": given}))) == [id(a), id(b), id(c)]
    made = map_tensors(lambda tensor: tensor + 1, given)
    assert isinstance(made, Outputs)
    assert [type(made["more"]), type(made["more"][1])] == [Boxes, Pair]
    assert [t.tolist() for t in tensors_in(made)] == [[1.0], [2.0, 2.0], [2.0, 2.0, 2.0]]
    assert made["more"][1][1] == "name"
    assert given["logits"] is a


def test_a_loader_is_read_batch_by_batch_and_its_first_batch_at_once() -> None:
    read: list[int] = []

    def loader() -> Any:
        for k in range(3):
            read.append(k)
            yield A + k, LABELS

    inputs = inputs_from(loader(), None, nn.Linear(3, 1), "it")
    assert read == [0]
    assert torch.equal(next(inputs).tensors[0], A)
    assert read == [0]
    assert [float(batch.tensors[0][0, 0]) for batch in inputs] == [1, 2]
    with pytest.raises(ValueError, match="it needs at least one batch"):
        inputs_from(iter([]), None, nn.Linear(3, 1), "it")
    with pytest.raises(ValueError, match=r"not a Tensor; give \[batch\]"):
        inputs_from(A, None, nn.Linear(3, 1), "it")


def test_batches_and_the_recorded_example_follow_the_model() -> None:
    model = nn.Linear(3, 1, device="meta")
    (batch,) = inputs_from([(A, LABELS)], None, model, "it")
    assert batch.tensors[0].device.type == "meta"


EXAMPLES = {
    "by position": lambda image, vector: (image, vector),
    "as a list": lambda image, vector: [image, vector],
    "by keyword": lambda image, vector: {"vector": vector, "image": image},
}


@pytest.mark.parametrize("answer", ["tuple", "dict", "dataclass"])
@pytest.mark.parametrize("form", EXAMPLES)
def test_several_inputs_and_outputs_go_all_the_way(form: str, answer: str) -> None:
    of = EXAMPLES[form]
    net = TwoInputs(answer).eval()
    model = qtool.prepare(net, BOTH, of(*images(0)))
    loader = [of(*images(seed)) for seed in (1, 2)]
    for batch in loader:  # as a loader gives them: labels, too
        batch.update(labels=LABELS) if isinstance(batch, dict) else None
    qtool.calibrate(model, loader)
    seen = max(float(images(seed)[1].abs().max()) for seed in (1, 2))
    absmax = qtool.prepare(
        net,
        {"activations": {"bits": 8, "place": "layer_inputs", "range": "absmax"}},
        of(*images(0)),
    )
    qtool.calibrate(absmax, loader)
    quantizer = absmax.get_submodule("side.input_quantizer")
    assert isinstance(quantizer, ActivationQuantizer)
    assert float(quantizer.scale) == pytest.approx(seen / quantizer.known_grid.qmax)

    qtool.reestimate_batch_norm(model, loader)
    assert int(model.get_buffer("norm.num_batches_tracked")) == 2
    qtool.convert(model, loader)
    integer = qtool.convert(model)
    image, vector = images(3)
    with torch.no_grad():
        given, expected = (list(tensors_in(m(image, vector))) for m in (integer, model))
    assert [g.shape for g in given] == [e.shape for e in expected] == [(6, 2), (6, 4)]
    for one, other in zip(given, expected, strict=True):
        off = (one - other).abs() / other.std()
        assert float(off.median()) < 0.02  # most agree; a few lie at a rounding threshold
        assert float(off.max()) < 0.2


def test_a_first_call_by_keyword_is_recorded_with_its_constants() -> None:
    model = qtool.prepare(TwoInputs().eval(), BOTH)
    image, vector = images(0, KEPT + 5)
    model(image=image, vector=vector, gain=0.5)
    example = prepared_state(model).recording.example
    assert example is not None
    assert example.kwargs["gain"] == 0.5
    assert [len(t) for t in example.tensors] == [KEPT, KEPT]
    assert torch.equal(example.tensors[1], vector[:KEPT])
    qtool.calibrate(model, [{"image": image, "vector": vector, "labels": LABELS}])
    qtool.convert(model)


def test_without_example_the_first_call_of_one_tensor_takes_it_from_tuples() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.fc(x)

    for call in (lambda m: m(x=A), lambda m: m(A, None), lambda m: m(A, mask=None)):
        model = qtool.prepare(Named(), BOTH)
        call(model)
        qtool.calibrate(model, [(2 * A, LABELS)])
        qtool.convert(model, [(A, LABELS), A])


def test_a_first_call_that_mixes_both_ways_asks_for_an_example() -> None:
    model = qtool.prepare(TwoInputs().eval(), BOTH)
    image, vector = images(0)
    model(image, vector=vector)
    with pytest.raises(ValueError, match="give prepare an example, a tuple or a dict, or "):
        qtool.calibrate(model, [(image, vector)])
    qtool.convert(model)  # the recorded call itself is known


def test_a_mask_of_infinities_is_an_input_like_any_other() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.v = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            q = self.q(x)
            return (q @ q.transpose(1, 2) + mask).softmax(2) @ self.v(x)

    mask = torch.full((5, 5), -torch.inf).triu(1)
    model = qtool.prepare(Attends(), BOTH, (torch.randn(2, 5, 3), mask))
    qtool.calibrate(model, [(torch.randn(2, 5, 3), mask)])
    qtool.convert(model)
    with pytest.raises(ValueError, match="the example holds inf"):
        qtool.prepare(Attends(), BOTH, (torch.randn(2, 5, 3), mask - torch.inf))


def test_the_example_is_not_changed_by_a_model_that_works_in_place() -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(3, 2))
    example = torch.tensor([[-1.0, 2.0, 3.0], [1.0, -2.0, 0.5]])
    before = example.clone()
    qtool.prepare(net, BOTH, example)
    assert torch.equal(example, before)
