"""Forward passes that decide: by mode, by shape, by chance, in loops."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from tests.zoo.network import Net, block, conv, head, images, pooled, zoo


@zoo("control_flow", images())
def head_that_training_alone_calls():
    def flow(net, x):
        low = net.low(x)
        logits = net.head(pooled(net.high(low)))
        return (logits, net.aux(pooled(net.side(low)))) if net.training else logits

    return Net(flow, low=block(3, 6), high=block(6, 6), side=block(6, 4), aux=head(4), head=head(6))


@zoo("control_flow", images())
def layer_that_evaluation_alone_calls():
    def flow(net, x):
        x = net.low(x)
        x = net.high(x) if net.training else net.other(x)
        return net.head(pooled(x))

    return Net(flow, low=block(3, 6), high=block(6, 6), other=block(6, 6), head=head(6))


@zoo("control_flow", images())
def early_exits():
    def flow(net, x):
        made = []
        for layer, exit_ in zip(net.layers, net.exits, strict=True):
            x = layer(x)
            made.append(exit_(pooled(x)))
        return made

    layers = nn.ModuleList([block(3, 6), block(6, 6), block(6, 6)])
    return Net(flow, layers=layers, exits=nn.ModuleList([head(6), head(6), head(6)]))


@zoo("control_flow", images())
def branch_by_shape():
    def flow(net, x):
        x = net.large(x) if x.shape[-1] > 8 else net.small(x)
        return net.head(pooled(x))

    return Net(flow, large=block(3, 6, stride=2), small=block(3, 6), head=head(6))


@zoo("control_flow", images())
class AsDeepAsAsked(nn.Module):
    """A layer that runs as often as a number says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.norm, self.head = (
            conv(3, 6),
            conv(6, 6),
            nn.BatchNorm2d(6),
            head(6),
        )
        self.depth = 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for _ in range(self.depth):
            x = x + F.relu(self.norm(self.same(x)))
        return self.head(pooled(x))


@zoo("control_flow", images())
def stochastic_depth():
    def flow(net, x):
        x = net.stem(x)
        x = x + net.drop(net.body(x))
        return net.head(pooled(x))

    body = nn.Sequential(block(6, 6), conv(6, 6, bias=False), nn.BatchNorm2d(6))
    return Net(flow, stem=block(3, 6), body=body, drop=StochasticDepth(0.3, "row"), head=head(6))


@zoo("control_flow", images())
def checkpointed():
    def flow(net, x):
        x = net.stem(x)
        x = checkpoint(net.body, x, use_reentrant=False) if net.training else net.body(x)
        return net.head(pooled(x))

    return Net(flow, stem=block(3, 6), body=nn.Sequential(block(6, 6), block(6, 6)), head=head(6))


@zoo("control_flow", images())
def blocks_skipped_by_chance():
    def flow(net, x):
        x = net.stem(x)
        for layer in net.layers:
            if not net.training or torch.rand(()) < 0.7:
                x = x + layer(x)
        return net.head(pooled(x))

    layers = nn.ModuleList([block(6, 6), block(6, 6)])
    return Net(flow, stem=block(3, 6), layers=layers, head=head(6))


@zoo("control_flow", images())
def both_ways_round_in_evaluation():
    def flow(net, x):
        logits = net.head(pooled(net.body(x)))
        if net.training:
            return logits
        return (logits + net.head(pooled(net.body(x.flip(-1))))) / 2

    return Net(flow, body=nn.Sequential(block(3, 6), block(6, 6)), head=head(6))


@zoo("control_flow", images())
def experts_with_a_gate():
    def flow(net, x):
        x = net.stem(x)
        shares = torch.softmax(net.gate(pooled(x)), 1)
        made = torch.stack([expert(x) for expert in net.experts], 1)
        return net.head(pooled((made * shares[:, :, None, None, None]).sum(1)))

    experts = nn.ModuleList([block(6, 6), block(6, 6), block(6, 6)])
    return Net(flow, stem=block(3, 6), gate=nn.Linear(6, 3), experts=experts, head=head(6))
