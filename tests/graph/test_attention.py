"""Attention whose projections are layers computes what nn.MultiheadAttention does."""

import copy
import pickle
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import qtool
from qtool.graph.attention import (
    LayeredAttention,
    attentions,
    given_apart,
    layered,
    make_layered,
)


def _in_layers(attention: nn.MultiheadAttention, *, packed: bool) -> LayeredAttention:
    """Return a copy with layers for projections."""
    model = nn.Sequential(copy.deepcopy(attention))
    make_layered(model, ["0"] if packed else [], [] if packed else ["0"])
    made = model[0]
    assert isinstance(made, LayeredAttention)
    return made


def _random(attention: nn.MultiheadAttention) -> nn.MultiheadAttention:
    """Return an attention whose biases are not zero."""
    for name, parameter in attention.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return attention


def _masks(batch: int, heads: int, length: int, keys: int) -> Iterator[dict[str, Tensor]]:
    """Yield masks of every kind; no query is left without a key."""
    shut = torch.rand(length, keys) > 0.6
    padded = torch.rand(batch, keys) > 0.6
    shut[:, 0], padded[:, 0] = False, False
    yield {}
    yield {"attn_mask": shut}
    yield {"attn_mask": torch.randn(batch * heads, length, keys)}
    yield {"key_padding_mask": padded}
    yield {"attn_mask": shut, "key_padding_mask": padded}
    added = torch.zeros(batch, keys).masked_fill(padded, float("-inf"))
    yield {"attn_mask": torch.randn(length, keys), "key_padding_mask": added}


KINDS = {
    "plain": {},
    "without bias": {"bias": False},
    "with biases of keys": {"add_bias_kv": True},
    "with a key of zeros": {"add_zero_attn": True, "add_bias_kv": True},
    "of other widths": {"kdim": 6, "vdim": 10},
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_torch_does(kind: str, packed: bool) -> None:
    torch.manual_seed(0)
    width, heads, batch, length, keys = 8, 2, 3, 4, 5
    options = KINDS[kind]
    for batch_first in (True, False):
        plain = _random(nn.MultiheadAttention(width, heads, batch_first=batch_first, **options))
        made = _in_layers(plain, packed=packed)
        q = torch.randn(batch, length, width)
        k = torch.randn(batch, keys, options.get("kdim", width))
        v = torch.randn(batch, keys, options.get("vdim", width))
        given = [t if batch_first else t.transpose(0, 1) for t in (q, k, v)]
        for masks, need, average in product(
            _masks(batch, heads, length, keys), (True, False), (True, False)
        ):
            more = {"need_weights": need, "average_attn_weights": average, **masks}
            expected, weights = plain(*given, **more)
            output, own = made(*given, **more)
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=2e-6)
            torch.testing.assert_close(own, weights, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("need", [True, False])
def test_one_tensor_alone_without_a_batch_and_causal(packed: bool, need: bool) -> None:
    torch.manual_seed(0)
    plain = _random(nn.MultiheadAttention(8, 2))
    made, x = _in_layers(plain, packed=packed), torch.randn(5, 8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    more = {"attn_mask": mask, "is_causal": True, "need_weights": need}
    expected, weights = plain(x, x, x, **more)
    output, own = made(x, x, x, **more)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(own, weights, rtol=1e-5, atol=2e-6)
    with pytest.raises(RuntimeError, match="there is no attn_mask"):
        made(x, x, x, is_causal=True)


def test_dropout_is_on_the_weights_in_training_alone() -> None:
    torch.manual_seed(0)
    made = _in_layers(nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), packed=True)
    x = torch.randn(2, 5, 8)
    _, weights = made(x, x, x, average_attn_weights=False)
    assert 0.2 < float((weights == 0).float().mean()) < 0.8
    assert torch.equal(made.eval()(x, x, x)[0], made(x, x, x)[0])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("widths", [{}, {"kdim": 6, "vdim": 10}])
def test_a_state_of_a_plain_attention_can_be_loaded(packed: bool, widths: dict[str, int]) -> None:
    torch.manual_seed(0)
    plain, other = (_random(nn.MultiheadAttention(8, 2, **widths)) for _ in range(2))
    made = _in_layers(other, packed=packed)
    made.load_state_dict(plain.state_dict())
    q, k = torch.randn(4, 1, 8), torch.randn(3, 1, widths.get("kdim", 8))
    v = torch.randn(3, 1, widths.get("vdim", 8))
    torch.testing.assert_close(made(q, k, v)[0], plain(q, k, v)[0], rtol=1e-5, atol=2e-6)
    names = ["in_proj"] if packed and not widths else ["q_proj", "k_proj", "v_proj"]
    assert [name for name, _ in made.named_children()] == [*names, "out_proj"]


class Kind(nn.MultiheadAttention):
    """A subclass that computes the same."""


class Other(nn.MultiheadAttention):
    """A subclass that may not."""

    def forward(self, *args: Tensor, **kwargs: object) -> tuple[Tensor, Tensor | None]:
        return super().forward(*args, **kwargs)


def test_copies_and_pickles_of_subclasses() -> None:
    model = nn.Sequential(Kind(8, 2), nn.MultiheadAttention(8, 2))
    make_layered(model, ["0"], ["1"])
    x = torch.randn(3, 2, 8)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(twin[0], Kind)
        assert layered(twin) == (["0"], ["1"])
        for one, other in zip(model, twin, strict=True):
            assert torch.equal(one(x, x, x)[0], other(x, x, x)[0])


def test_what_may_compute_something_else_is_left_alone() -> None:
    replaced, computed = nn.MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2)
    replaced.forward = lambda *args: args
    parametrize.register_parametrization(computed, "in_proj_weight", nn.Identity())
    model = nn.ModuleList([Kind(8, 2), Other(8, 2), replaced, computed])
    assert list(attentions(model)) == ["0"]


def test_attentions_of_several_tensors_are_told() -> None:
    model = nn.TransformerDecoderLayer(8, 2, 16)
    x, memory = torch.randn(3, 2, 8), torch.randn(4, 2, 8)
    found = attentions(model)
    assert list(found) == ["self_attn", "multihead_attn"]
    assert given_apart(model, found, [lambda: model(x, memory)]) == {"multihead_attn"}
    assert given_apart(model, found, [lambda: model(x)]) == set()
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@torch.no_grad()
def test_an_encoder_does_not_read_weights_past_the_layers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    plain = nn.TransformerEncoder(layer, 2).eval()
    made = copy.deepcopy(plain)
    make_layered(made, list(attentions(made)), [])
    calls = []
    for module in made.modules():
        if isinstance(module, nn.Linear):
            call = module.forward
            module.forward = lambda x, call=call: calls.append(1) or call(x)
    x, padded = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    output, expected = made(x, src_key_padding_mask=padded), plain(x, src_key_padding_mask=padded)
    kept = ~padded
    torch.testing.assert_close(output[kept], expected[kept], rtol=1e-5, atol=2e-6)
    assert len(calls) == 2 * 4


class Gated(nn.Module):
    """Attention, and a method of tensors that is written in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x * (1 - self.fc(self.norm(x)).sigmoid())


def test_a_prepared_model_with_attention_compiles_as_a_whole() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    section = {"weights": {"bits": 4}, "activations": {"bits": 4, "place": "every_value"}}
    model = qtool.prepare(Gated().train(), section, x)
    model(x)
    twin = copy.deepcopy(model)
    call = torch.compile(twin, backend="aot_eager", fullgraph=True)
    for one in (model, twin):
        qtool.begin_step(one)
    made, expected = call(x), model(x)
    torch.testing.assert_close(made, expected)
    made.square().sum().backward()
    expected.square().sum().backward()
    for (name, given), own in zip(twin.named_parameters(), model.parameters(), strict=True):
        assert given.grad is not None, name
        torch.testing.assert_close(given.grad, own.grad)
