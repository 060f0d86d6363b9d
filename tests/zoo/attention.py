"""Attention: torch's own modules, written out, and gates of channels and places."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo.network import Net, block, conv, head, images, pooled, zoo

WIDTH = 8


def patches() -> nn.Conv2d:
    """Return the layer that makes patches of 2 x 2 pixels into tokens."""
    return nn.Conv2d(3, WIDTH, 2, 2)


def tokens(x: Tensor) -> Tensor:
    """Return a map [N, C, H, W] as tokens [N, HW, C]."""
    return x.flatten(2).transpose(1, 2)


@zoo("attention", images())
def multihead_attention():
    def flow(net, x):
        x = tokens(net.stem(x))
        x = x + net.attend(x, x, x, need_weights=False)[0]
        return net.head(net.hidden(x).relu().mean(1))

    attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
    return Net(flow, stem=patches(), attend=attend, hidden=nn.Linear(8, 8), head=head(8))


@zoo("attention", images())
def transformer_encoder_layer():
    def flow(net, x):
        return net.head(net.layer(tokens(net.stem(x))).mean(1))

    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
    return Net(flow, stem=patches(), layer=layer, head=head(8))


@zoo("attention", images())
def transformer_encoder():
    def flow(net, x):
        return net.head(net.encoder(tokens(net.stem(x))).mean(1))

    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return Net(flow, stem=patches(), encoder=encoder, head=head(8))


class Attention(nn.Module):
    """Attention of linear layers."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        parts = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) / (c // self.heads) ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(n, t, c))


class Layer(nn.Module):
    """A layer of a vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attend = nn.LayerNorm(WIDTH), Attention(WIDTH)
        self.norm2, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


@zoo("attention", images())
class ClassToken(nn.Module):
    """A small vision transformer with a class token and learned positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.layers, self.norm = (
            patches(),
            nn.Sequential(Layer(), Layer()),
            nn.LayerNorm(8),
        )
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH) / 2)
        self.positions, self.head = nn.Parameter(torch.randn(1, 17, WIDTH) / 4), head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = tokens(self.stem(x))
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


@zoo("attention", images())
def query_key_and_value():
    def flow(net, x):
        x = tokens(net.stem(x).relu())
        q, k, v = net.query(x), net.key(x), net.value(x)
        weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)) / 2, -1)
        return net.head(torch.bmm(weights, v).mean(1))

    layers = {name: nn.Linear(8, 8, bias=False) for name in ("query", "key", "value")}
    return Net(flow, stem=patches(), head=head(8), **layers)


@zoo("attention", images())
def attention_by_one_function():
    def flow(net, x):
        x = tokens(net.stem(x).relu())
        q, k, v = (
            part.unflatten(2, (2, 4)).transpose(1, 2) for part in net.project(x).chunk(3, -1)
        )
        made = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return net.head((x + net.out(made)).mean(1))

    return Net(flow, stem=patches(), project=nn.Linear(8, 24), out=nn.Linear(8, 8), head=head(8))


@zoo("attention", images())
def gates_of_channels_and_places():
    def flow(net, x):
        x = net.stem(x)
        x = x * torch.sigmoid(net.up(net.down(x.mean((2, 3), keepdim=True)).relu()))
        seen = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return net.head(pooled(x * torch.sigmoid(net.place(seen))))

    return Net(
        flow,
        stem=block(3, 8),
        down=conv(8, 4, 1),
        up=conv(4, 8, 1),
        place=conv(2, 1, 3),
        head=head(8),
    )


@zoo("attention", images())
class LearnedQueries(nn.Module):
    """Queries that look at the tokens in a decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = patches(), head(16)
        self.queries = nn.Parameter(torch.randn(1, 2, WIDTH) / 2)
        self.decoder = nn.TransformerDecoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = tokens(self.stem(x))
        return self.head(self.decoder(self.queries.expand(x.shape[0], -1, -1), x).flatten(1))


@zoo("attention", images())
class LinearAttention(nn.Module):
    """Attention without softmax by einsum, with a learned bias of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.head = patches(), conv(WIDTH, 24, 1), head(8)
        self.norm, self.bias = nn.BatchNorm2d(24), nn.Parameter(torch.randn(16, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.qkv(self.stem(x).relu()))
        q, k, v = (tokens(part) for part in x.chunk(3, 1))
        k = F.relu(k + self.bias)
        state = torch.einsum("btc,btd->bcd", k, v)
        return self.head(torch.einsum("btc,bcd->btd", F.relu(q), state).mean(1) / 16)


@zoo("attention", images())
class Windows(nn.Module):
    """Attention within windows of 4 x 4 pixels, with a table of relative positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attend, self.head = block(3, WIDTH), Attention(WIDTH), head(8)
        self.table = nn.Parameter(torch.randn(16, WIDTH) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        x = x.view(n, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        x = x + self.attend(x + self.table)
        return self.head(x.reshape(n, -1, c).mean(1))
