"""Attention whose projections are layers: nn.MultiheadAttention reads its weights by functions.

A module is changed in place, so that its hooks, its attributes and who holds it stay. Where query,
key and value are one tensor, all three are projected by one layer, `in_proj`, else by `q_proj`,
`k_proj` and `v_proj`. What comes between projections is computed as torch.nn does.

The fast paths of torch.nn, which read all weights of an encoder's layer themselves, are not taken.
So padded places, which they fill with zeros, hold numbers, as they do in training mode.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.graph.sites.functions import argument

PACKED, APART = ("in_proj",), ("q_proj", "k_proj", "v_proj")
_HELD = ("in_proj_weight", "in_proj_bias", *(f"{name}_weight" for name in APART))
_OWN = ("forward", "__call__", "_load_from_state_dict", "__getstate__")


def held_by_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the projections in a state by the names that nn.MultiheadAttention has for them."""
    found: dict[str, Tensor] = {}
    for key in state:
        prefix, dot, name = key.rpartition("in_proj.")
        if dot and name in ("weight", "bias"):
            found[f"{prefix}in_proj_{name}"] = state[key]
        prefix, dot, name = key.rpartition("q_proj.")
        if dot and name in ("weight", "bias"):
            parts = [state.get(f"{prefix}{part}.{name}") for part in APART]
            tensors = [part for part in parts if part is not None]
            if len({tensor.shape[1:] for tensor in tensors}) == 1 and len(tensors) == len(APART):
                found[f"{prefix}in_proj_{name}"] = torch.cat(tensors)
            if name == "weight":
                own = zip(APART, parts, strict=True)
                found |= {f"{prefix}{part}_weight": t for part, t in own if t is not None}
    return found


class LayeredAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention whose projections are layers among its children."""

    def _projections(self) -> list[nn.Module]:
        return [child for name, child in self.named_children() if name in (*PACKED, *APART)]

    @property
    def in_proj_weight(self) -> object:
        """Return the weight of the packed projection; None where there are three."""
        return getattr(self.get_submodule("in_proj"), "weight", None) if self._is_packed else None

    @property
    def in_proj_bias(self) -> object:
        """Return the bias of the packed projection; None where there is none, or are three."""
        return getattr(self.get_submodule("in_proj"), "bias", None) if self._is_packed else None

    @property
    def _is_packed(self) -> bool:
        return "in_proj" in self._modules

    def forward(  # noqa: PLR0917 - as nn.MultiheadAttention has it
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,  # noqa: FBT001, FBT002 - as above
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,  # noqa: FBT001, FBT002 - as above
        is_causal: bool = False,  # noqa: FBT001, FBT002 - as above
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output, and the weights where they are asked for; see nn.MultiheadAttention.

        Args:
            query: [B, L, E], or [L, B, E] unless batch_first, or [L, E].
            key: [B, S, K], or as query.
            value: [B, S, V], or as query.
            key_padding_mask: [B, S] or [S], true where a key is left out, or what is added.
            need_weights: whether weights are returned.
            attn_mask: [L, S] or [B * heads, L, S], as key_padding_mask.
            average_attn_weights: whether the weights are averaged over heads.
            is_causal: attn_mask is the causal one.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal says what attn_mask is, and there is no attn_mask")
        alone = query.dim() == 2
        q, k, v = self._projected(*self._batch_first(query, key, value))
        batch, length = q.shape[0], q.shape[1]
        causal = is_causal and key_padding_mask is None and not need_weights
        added = None if causal or attn_mask is None else _added(attn_mask, q)
        if added is not None:
            added = added.view(-1, self.num_heads, *added.shape[1:]) if added.dim() == 3 else added
        if key_padding_mask is not None:
            padding = _added(key_padding_mask, q).view(batch, 1, 1, -1)
            added = padding if added is None else added + padding
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(batch, 1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(batch, 1, -1)], 1)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        if self.add_zero_attn:
            k, v = (F.pad(part, (0, 0, 0, 1)) for part in (k, v))
        if added is not None:
            added = F.pad(added, (0, k.shape[2] - added.shape[-1]))
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q * self.head_dim**-0.5 @ k.transpose(-2, -1)
            weights = torch.softmax(scores if added is None else scores + added, -1)
            weights = F.dropout(weights, dropout) if dropout else weights
            made = weights @ v
        else:
            made = F.scaled_dot_product_attention(q, k, v, added, dropout, causal)
        output = self.out_proj(made.transpose(1, 2).reshape(batch, length, -1))
        if weights is not None:
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights.squeeze(0) if alone else weights
        if alone:
            return output.squeeze(0), weights
        return output if self.batch_first else output.transpose(0, 1), weights

    def _batch_first(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return them as [B, L, ...]; one tensor stays one tensor."""
        made: list[Tensor] = []
        given = (query, key, value)
        for place, tensor in enumerate(given):
            same = [made[k] for k in range(place) if given[k] is tensor]
            if same:
                made.append(same[0])
            elif tensor.dim() == 2:
                made.append(tensor.unsqueeze(0))
            else:
                made.append(tensor if self.batch_first else tensor.transpose(0, 1))
        return made

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return what the layers make of query, key and value, [B, L or S, E] each."""
        given, layers = (query, key, value), self._projections()
        if len(layers) == len(given):
            return [layer(tensor) for layer, tensor in zip(layers, given, strict=True)]
        if query is key and key is value:
            return list(layers[0](query).chunk(3, -1))
        return [layers[0](tensor).chunk(3, -1)[place] for place, tensor in enumerate(given)]


def _from_plain(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: object
) -> None:
    """Take a state of nn.MultiheadAttention, too; a hook before a state is loaded."""
    names = [name for name in (*PACKED, *APART) if name in module._modules]
    for kind in ("weight", "bias"):
        whole = state_dict.pop(f"{prefix}in_proj_{kind}", None)
        if whole is not None:
            for name, part in zip(names, whole.chunk(len(names)), strict=True):
                state_dict[f"{prefix}{name}.{kind}"] = part
    for name in APART:
        part = state_dict.pop(f"{prefix}{name}_weight", None)
        if part is not None:
            state_dict[f"{prefix}{name}.weight"] = part


def _added(mask: Tensor, like: Tensor) -> Tensor:
    """Return what a mask adds to scores: minus infinity where it is true."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))


def attentions(model: nn.Module) -> dict[str, nn.MultiheadAttention]:
    """Return the modules of a model that compute what nn.MultiheadAttention does, by name.

    A subclass does where it takes over the methods that compute; its parameters are plain ones.
    """
    found = {}
    for name, module in model.named_modules():
        plain = nn.MultiheadAttention
        if isinstance(module, plain) and not isinstance(module, LayeredAttention):
            kind = type(module)
            same = all(getattr(kind, own, 0) is getattr(plain, own, 0) for own in _OWN)
            held = all(name in module._parameters for name in _HELD)  # by no parametrization
            if same and held and "forward" not in vars(module):
                found[name] = module
    return found


def given_apart(
    model: nn.Module, names: Collection[str], passes: Iterable[Callable[[], object]]
) -> set[str]:
    """Return the attentions whose query, key and value are not one tensor in some pass.

    Args:
        model: whose attentions are looked at.
        names: of these.
        passes: each makes a pass of the model; one that fails tells nothing.
    """
    found: set[str] = set()

    def hook(name: str) -> Callable[[nn.Module, tuple[object, ...], dict[str, object]], None]:
        def look(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
            given = [
                argument(args, kwargs, place, word)
                for place, word in enumerate(("query", "key", "value"))
            ]
            if any(tensor is not given[0] for tensor in given):
                found.add(name)

        return look

    handles = [
        model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True)
        for name in names
    ]
    try:
        for make in passes:
            # whatever a model raises in a mode that it is not made for
            with torch.no_grad(), suppress(Exception):
                make()
    finally:
        for handle in handles:
            handle.remove()
    return found


def make_layered(model: nn.Module, packed: Collection[str], apart: Collection[str]) -> None:
    """Make layers of the projections of attentions, in place.

    Args:
        model: changed in place.
        packed: names of attentions of one tensor, which is projected by one layer.
        apart: names of those whose query, key and value are projected by three.
    """
    for name in (*packed, *apart):
        module = model.get_submodule(name)
        assert isinstance(module, nn.MultiheadAttention)
        layers = dict(_layers(module, together=name in packed))
        for kept in _HELD:
            del module._parameters[kept]
        module.__class__ = _layered(type(module))
        module._qkv_same_embed_dim = False  # else encoders read the weights themselves
        for key, layer in layers.items():
            module.add_module(key, layer.train(module.training))
        module._modules["out_proj"] = module._modules.pop("out_proj")  # the last of them
        module.register_load_state_dict_pre_hook(_from_plain)
    if not (packed or apart):
        return
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def layered(model: nn.Module) -> tuple[list[str], list[str]]:
    """Return the names of attentions whose projections are one layer, and of those with three."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, LayeredAttention)}
    packed = [name for name, module in found.items() if module._is_packed]
    return packed, [name for name in found if name not in packed]


def _layers(module: nn.MultiheadAttention, *, together: bool) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the layers that project, with the module's parameters."""
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if together and weight is not None:
        yield PACKED[0], _linear(weight, bias)
        return
    weights = [getattr(module, f"{name}_weight") for name in APART]
    if weight is not None:
        weights = [_part(weight, place) for place in range(3)]
    biases = [None if bias is None else _part(bias, place) for place in range(3)]
    for name, one, other in zip(APART, weights, biases, strict=True):
        yield name, _linear(one, other)


def _part(tensor: nn.Parameter, place: int) -> nn.Parameter:
    """Return a third of a parameter, as a parameter."""
    part = tensor.detach().chunk(3)[place].clone()
    return nn.Parameter(part, requires_grad=tensor.requires_grad)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """Return a layer of these parameters."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


@cache
def _layered(kind: type[nn.MultiheadAttention]) -> type[LayeredAttention]:
    """Return the layered form of a type that computes what nn.MultiheadAttention does."""
    if kind is nn.MultiheadAttention:
        return LayeredAttention
    # no module holds such a type, so that its objects say themselves how they are unpickled
    content = {"__reduce__": _reduced, "__module__": __name__, "__doc__": LayeredAttention.__doc__}
    return type(f"Layered{kind.__name__}", (LayeredAttention, kind), content)


def _reduced(module: nn.Module) -> tuple[object, ...]:
    kind = cast(type[nn.MultiheadAttention], type(module).__bases__[-1])
    return _empty, (kind,), module.__getstate__()


def _empty(kind: type[nn.MultiheadAttention]) -> nn.Module:
    made = _layered(kind)
    return made.__new__(made)
