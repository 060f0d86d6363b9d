"""BRECQ: the rounding of all weights of a block, learned so that the block's output changes least.

What the block reads, and each value inside that is rounded, is left float at random, element by
element, while that is learned (QDrop); the steps of these values are learned beside the rounding.
The loss is the mean squared error of the output, without the diagonal of the Fisher information.

References: Li et al., 2021, arXiv:2102.05426 (BRECQ); Wei et al., 2022, arXiv:2203.05740 (QDrop);
learned steps as Esser et al., 2020, arXiv:1902.08153 (LSQ).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qtool.numerics.ranges import above_floor
from qtool.post_training.adaround import Learning
from qtool.post_training.held_codes import codes_of, hold_codes, quantizer_of, rows_of
from qtool.post_training.soft_rounding import SoftRows, beta_at, regularizer
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.layers import QuantLayer
from qtool.quantizers.sites import SiteQuantizer

KEPT = 0.5  # the share of elements that are rounded while learning, as QDrop has it
STEP_RATE = 0.002  # of Adam for learned steps, as a share of the step
BATCH = 64  # images at a time where nothing is learned


@dataclass(frozen=True)
class Images:
    """What a block reads and should make, of the same images.

    Attributes:
        rounded: what it reads in the quantized network so far, [N, ...].
        exact: what it reads in the float network, [N, ...].
        outputs: what it makes there, [N, ...].
    """

    rounded: Tensor
    exact: Tensor
    outputs: Tensor

    @torch.no_grad()
    def error(self, block: nn.Module) -> float:
        """Return the squared error of a block's output, as a share of its spread by channel."""
        wrong = sum(
            float((block(x.clone()) - y).double().square().sum())
            for x, y in zip(self.rounded.split(BATCH), self.outputs.split(BATCH), strict=True)
        )
        return wrong / self.spread

    @property
    def spread(self) -> float:
        """Return the sum of squared differences of outputs from the mean of their channel."""
        dims = [axis for axis in range(self.outputs.ndim) if axis != 1]
        apart = self.outputs - self.outputs.mean(dims, keepdim=True)
        return max(float(apart.double().square().sum()), 1e-30)


def learn_block(
    block: nn.Module,
    layers: dict[str, QuantLayer],
    images: Images,
    name: str,
    *,
    how: Learning,
    generator: torch.Generator,
    each: Callable[[float], None] = lambda progress: None,
) -> float:
    """Learn the rounding of a block's weights, and the steps of values inside it, in place.

    Args:
        block: in evaluation.
        layers: its quantized layers, by name.
        images: to learn from.
        name: of the block in its model.
        how: to learn.
        generator: on the CPU, draws images and what is left float.
        each: is told of the share of iterations done.

    Returns:
        The error of its output. Where learning made that no better, the block is as it was.
    """
    before = images.error(block)
    inside = [module for module in block.modules() if isinstance(module, ActivationQuantizer)]
    learned = [quantizer for quantizer in inside if _learns_step(quantizer, name)]
    soft = {n: SoftRows.of(rows_of(m), quantizer_of(m).on_grid) for n, m in layers.items()}
    starts = [quantizer.scale.detach().clone() for quantizer in learned]
    rates = [STEP_RATE * float(start) for start in starts]
    count = sum(rows.v.numel() for rows in soft.values())
    unit = images.spread / len(images.outputs)  # of one image
    weight = how.weight * before / count
    with ExitStack() as stack, torch.enable_grad():
        stack.enter_context(_only_these_train(block, [q.scale for q in learned]))
        for layer_name, layer in layers.items():
            stack.enter_context(_rounded_by(layer, soft[layer_name]))
        for quantizer in inside:
            stack.enter_context(_left_at_random(quantizer, generator))
        optimizer = torch.optim.Adam([rows.v for rows in soft.values()], lr=how.rate)
        for quantizer, rate in zip(learned, rates, strict=True):
            optimizer.add_param_group({"params": [quantizer.scale], "lr": rate})
        batch = min(how.images, len(images.outputs))
        for step in range(how.iterations):
            progress = step / how.iterations
            for group, rate in zip(optimizer.param_groups[1:], rates, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2
            chosen = torch.randint(len(images.outputs), (batch,), generator=generator)
            x, exact = images.rounded[chosen], images.exact[chosen]
            made = block(torch.where(_some(x, generator), x, exact))
            loss = (made - images.outputs[chosen]).square().sum() / (batch * unit)
            beta = beta_at(progress)
            if beta is not None:
                pull = sum(regularizer(rows.h(), beta) for rows in soft.values())
                loss = loss + weight * pull
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            each((step + 1) / how.iterations)
    for quantizer in learned:
        _settle(quantizer)
    nearest = {n: codes_of(layer) for n, layer in layers.items()}
    for layer_name, layer in layers.items():
        hold_codes(layer, soft[layer_name].codes())
    if (after := images.error(block)) <= before:
        return after
    for layer_name, layer in layers.items():
        hold_codes(layer, nearest[layer_name])
    for quantizer, start in zip(learned, starts, strict=True):
        quantizer.scale.detach().copy_(start)
    return before


def _learns_step(quantizer: ActivationQuantizer, block: str) -> bool:
    """Tell whether the step of a quantizer may be learned by a block alone."""
    if quantizer.given or not quantizer.ready:
        return False
    if not isinstance(quantizer, SiteQuantizer):
        return True
    own = all(f"{member}.".startswith((f"{block}.", f"{block}:")) for member in quantizer.members)
    return own and quantizer.form in ("free", "rectified")


@torch.no_grad()
def _settle(quantizer: ActivationQuantizer) -> None:
    """Bring a learned step to where a calibrated one would lie."""
    quantizer.scale.copy_(above_floor(quantizer.scale))
    top = quantizer.top if isinstance(quantizer, SiteQuantizer) else None
    if top is not None and quantizer.known_grid.kind == "unsigned":
        quantizer.scale.clamp_(max=top / quantizer.known_grid.qmax)


def _some(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return which elements are rounded, bool, shaped as x."""
    return (torch.rand(x.shape, generator=generator) < KEPT).to(x.device)


@contextmanager
def _standing_in(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let another function do a module's work while inside."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


@contextmanager
def _rounded_by(layer: QuantLayer, soft: SoftRows) -> Iterator[None]:
    """Let a layer compute with a weight whose rounding is learned."""

    def forward(weight: Tensor) -> Tensor:
        return layer.layout.weight(soft.rows(soft.h())).to(weight.dtype)

    with _standing_in(quantizer_of(layer), forward):
        yield


@contextmanager
def _left_at_random(quantizer: ActivationQuantizer, generator: torch.Generator) -> Iterator[None]:
    """Let a quantizer leave some elements as they are."""
    rounds = quantizer.forward

    def forward(
        x: Tensor, *, rectify: bool = False, top: float | None = None, member: str = ""
    ) -> Tensor:
        rounded = rounds(x, rectify=rectify, top=top, member=member)
        if rectify:
            x = F.relu(x) if top is None else torch.clamp(x, 0, top)
        return torch.where(_some(x, generator), rounded, x)

    with _standing_in(quantizer, forward):
        yield


@contextmanager
def _only_these_train(block: nn.Module, scales: list[Tensor]) -> Iterator[None]:
    """Let only these tensors get gradients in a block while inside."""
    tensors = [*block.parameters(), *scales]
    before = [tensor.requires_grad for tensor in tensors]
    for tensor in block.parameters():
        tensor.requires_grad = False
    for scale in scales:
        scale.requires_grad = True
    try:
        yield
    finally:
        for tensor, was in zip(tensors, before, strict=True):
            tensor.grad = None
            tensor.requires_grad = was
