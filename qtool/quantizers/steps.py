"""When a training step begins: what is due once per step is done once, however many passes it has.

A step is an optimizer's. A pass begins one where the parameters have moved since the last one
began. So neither the further passes of gradient accumulation, nor the second pass of gradient
checkpointing, nor a step that a GradScaler skips is a step of its own.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo  # torch.compiler.disable, but loads no compiler yet
from torch.optim.optimizer import Optimizer

from qtool.graph.calls import CountsCalls
from qtool.graph.sites.late_hooks import hook_of
from qtool.numerics.scales import SMALLEST_SCALE
from qtool.quantizers.activations import ActivationQuantizer
from qtool.quantizers.computed import ComputesWeight
from qtool.quantizers.layers import QuantLayer
from qtool.quantizers.moved import (
    Place,
    WatchesOptimizers,
    in_backward,
    place_of,
    watch_optimizers,
)
from qtool.quantizers.weights import WeightQuantizer, begin_steps, seen_at
from qtool.world.passes import Share, this_pass

Parameters = dict[str, nn.Parameter | None]  # of one module


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Return what `modules` of a model yields, without making up names, which takes far longer."""
    found: dict[nn.Module, None] = {}
    waiting = [model]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found[module] = None
            waiting += [m for m in reversed(module._modules.values()) if m is not None]
    return list(found)


class Members(NamedTuple):
    """What a step concerns: quantizers, with the weight of each, and what counts its calls."""

    weights: list[tuple[WeightQuantizer, Tensor]]
    inputs: list[ActivationQuantizer]
    counting: list[CountsCalls]
    parameters: list[Parameters]

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Find them in a model."""
        return cls.among(modules_of(model))

    @classmethod
    def among(cls, modules: list[nn.Module]) -> Self:
        """Find them among the modules of a model."""
        found = cls([], [], [], [])
        for module in modules:
            if isinstance(module, ActivationQuantizer):
                found.inputs.append(module)
            elif isinstance(module, ComputesWeight):
                pass  # its weight is made anew in each pass, which then begins a step of it
            elif isinstance(module, QuantLayer) and module.weight_quantizer is not None:
                found.weights.append((module.weight_quantizer, module.weight))
            elif isinstance(module, CountsCalls):
                found.counting.append(module)
            if module._parameters:
                found.parameters.append(module._parameters)
        return found

    @property
    def place(self) -> Place:
        """Return what changes when a parameter is written to, or is put elsewhere."""
        given = [p for own in self.parameters for p in own.values() if p is not None]
        versions, places = zip(*map(place_of, given), strict=True) if given else ((), ())
        return sum(versions), sum(places)

    @property
    def training(self) -> Self:
        """Return those in training mode; inputs whose first values are still to come count none."""
        return self._replace(
            weights=[pair for pair in self.weights if pair[0].training],
            inputs=[
                quantizer for quantizer in self.inputs if quantizer.training and quantizer.ready
            ],
        )

    def take_share(self, share: Share) -> None:
        """Tell quantizers which part of a batch the passes see that come now."""
        for quantizer, _ in self.weights:
            quantizer.share = share
        for quantizer in self.inputs:
            quantizer.take_share(share)

    def keep_still(self, *, ahead: bool) -> None:
        """Tell quantizers whether what is due once per step is done; none looks at its values."""
        for quantizer, _ in self.weights:
            quantizer.ahead = ahead
        for quantizer in self.inputs:
            quantizer.ahead = quantizer.observer.ahead = ahead
            quantizer.observer.looks = False

    @torch.no_grad()
    def begin_step(self) -> None:
        """Do what is due once per step, so that forward passes have no more to do for it."""
        self.take_share(this_pass().share)
        scales: list[Tensor] = []
        for quantizer, weight in self.weights:
            quantizer.ahead, quantizer.seen = True, seen_at(weight)
            quantizer.train_with(weight)
            if quantizer.scale.requires_grad:
                scales.append(quantizer.scale)
        for quantizer in self.inputs:
            quantizer.ahead = True
            quantizer.observer.begin_step(quantizer.observed)
            if quantizer.scale.requires_grad:
                scales.append(quantizer.scale)
        for counting in self.counting:
            counting.calls = 0
        if scales:  # else one that was thrown far below 0 would not come back soon
            torch.ops.aten._foreach_clamp_min_.Scalar(scales, SMALLEST_SCALE)
        if self.weights:
            begin_steps([q for q, _ in self.weights], [weight for _, weight in self.weights])


class Steps(WatchesOptimizers):
    """Tells, at a prepared model, which of its passes begin a training step.

    Attributes:
        by_hand: the user calls `begin_step`, and that alone begins steps from then on.
        checkpointed: the whole model is run again in the backward pass, and without gradients
            before: that pass is one of training, too.
        share: which part of a batch quantizers were told that passes see; None before that.
    """

    def __init__(self) -> None:
        self.by_hand = self.checkpointed = False
        self._members: Members | None = None
        self._place: Place | None = None
        self._own: set[int] = set()
        self._moved = True
        self.share: Share | None = None

    def __getstate__(self) -> dict[str, object]:
        """Return nothing: a copy has parameters of its own, and its first pass begins a step."""
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Begin anew."""
        Steps.__init__(self)

    def watch(self, model: nn.Module) -> None:
        """Look at every pass of a prepared model from now on."""
        model.register_forward_pre_hook(self.before)
        model.register_forward_hook(self.after)

    def leave(self, model: nn.Module) -> None:
        """Look at no pass of a model any more, nor let the steps that a copy of it came with."""
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for number, hook in list(hooks.items()):
                if isinstance(getattr(hook_of(hook), "__self__", None), Steps):
                    del hooks[number]

    def before(self, model: nn.Module, args: object) -> None:
        """Begin a step where this pass is the first since the parameters moved."""
        if not torch.compiler.is_compiling() and this_pass().share != self.share:
            self._take_share(model)
        if (torch.is_grad_enabled() or self.checkpointed) and not self.by_hand:
            self._begin_pass(model)

    def after(self, model: nn.Module, args: object, output: object) -> None:
        """End the pass: later ones of the same step look at no values again."""
        if torch.is_grad_enabled() and not (self.by_hand and torch.compiler.is_compiling()):
            self._end_pass(model)

    def tell(self, optimizer: Optimizer) -> None:
        """Note a step of an optimizer, if it is one of this model's."""
        if not self._moved:
            groups = (map(id, group["params"]) for group in optimizer.param_groups)
            self._moved = not all(self._own.isdisjoint(group) for group in groups)

    def _take_share(self, model: nn.Module) -> None:
        """Tell quantizers which part of a batch this pass sees, unless it makes one over again."""
        if not in_backward():
            self.share = this_pass().share
            Members.of(model).take_share(self.share)

    @_disable_dynamo
    def _begin_pass(self, model: nn.Module) -> None:
        members = self._members
        moved = members is None or self._moved or members.place != self._place
        if moved and in_backward():  # the pass before, whose values this one has to give, is over
            self.checkpointed = True
        elif moved:
            self._members = members = Members.of(model)
            members.keep_still(ahead=True)
            training = members.training
            if not (training.weights or training.inputs):
                return
            training.begin_step()
            self._own = {id(p) for own in members.parameters for p in own.values()}
            self._place, self._moved = members.place, False
            watch_optimizers(self)
        elif members is not None:
            members.keep_still(ahead=True)

    @_disable_dynamo
    def _end_pass(self, model: nn.Module) -> None:
        if self._members is None:
            self._members = Members.of(model)
        if model.training:
            self._members.keep_still(ahead=self.by_hand)
        if not (self.by_hand or self._moved):  # a first pass has set scales that are parameters
            self._place = self._members.place
