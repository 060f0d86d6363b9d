"""Where a training went wrong: the first layer, or tensor, whose numbers cannot be right."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qtool.errors import RecipeError, TrainingError
from qtool.graph.sites.running import apart
from qtool.quantizers.door.finite import not_finite
from qtool.quantizers.fake_quantize import FakeQuantize
from qtool.quantizers.layers import QuantLayer
from qtool.settings.user_parts import is_users
from qtool.training.losses import Loss
from qtool.training.step_watch import StepError
from qtool.world.world import ALONE, World

SLOWER = "Lower training.learning_rate.start, or start from trained weights"


def failed_step(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    error: StepError,
    when: str,
    world: World = ALONE,
) -> TrainingError:
    """Return the error that says what failed at a step, where, and what to do.

    Args:
        model: as the step left it.
        batch: images and labels of the step, or of one after it.
        error: what was seen of loss or gradients.
        when: such as "in epoch 1, step 3".
        world: processes that have seen the same, each with a batch of its own.
    """
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = world.told(first_bad_layer(model, *batch) if len(batch[0]) else "")
    place, advice = next(filter(None, found), ""), SLOWER
    if not place:  # every number of the forward pass is finite
        growth = largest_growth(model, batch[0]), SLOWER
        place, advice = last_bad_gradient(model, gradients) or growth
    return TrainingError(f"{error.what} {when}{error.beside}; {place}. {advice}")


@torch.no_grad()
def first_bad_layer(model: nn.Module, inputs: Tensor, labels: Tensor | None = None) -> str:
    """Say where numbers first stop being finite on the way through the model, "" if nowhere."""
    if not torch.isfinite(inputs).all():
        return "the images themselves hold values that are not finite"
    if labels is not None and not torch.isfinite(labels).all():
        return "the labels themselves hold values that are not finite"
    found: list[str] = []

    def look(name: str, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        if not found and isinstance(output, Tensor) and not torch.isfinite(output).all():
            bad = [n for n, p in module.named_parameters() if not torch.isfinite(p).all()]
            bad += [n for n, b in module.named_buffers() if not torch.isfinite(b).all()]
            why = f"its {bad[0]} is not finite" if bad else "its output is not finite"
            found.append(f"the first layer that went bad is {name} ({why})")

    with each_layer(model, look):
        model(inputs)
    return found[0] if found else ""


def last_bad_gradient(model: nn.Module, gradients: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Say which layer's gradients went bad first, and what to do; None where none did.

    Gradients come from the last layer to the first, so that is the last one whose gradient is bad.
    """
    bad = [name for name, g in gradients.items() if not float(g.norm()) < float("inf")]
    if not bad:
        return None
    layer = bad[-1].rpartition(".")[0].removesuffix(".weight_quantizer")
    layer = layer.removesuffix(".input_quantizer")
    kind = "holds" if torch.isfinite(gradients[bad[-1]]).all() else not_finite(gradients[bad[-1]])
    if kind == "holds":
        kind = f"reaches {float(gradients[bad[-1]].abs().amax()):.3g}"
    place = f"the first gradient that went bad is that of {bad[-1]}, which {kind}"
    module = model.get_submodule(layer)
    for quantizer in module.modules():
        chosen = quantizer.settings.estimator if isinstance(quantizer, FakeQuantize) else None
        if chosen is not None and is_users(chosen.name):
            return f"{place}; its estimator is {chosen.name}", f"See what {chosen.name} returns"
    return place, SLOWER


@torch.no_grad()
def largest_growth(model: nn.Module, inputs: Tensor) -> str:
    """Say which layer's output is largest beside its input."""
    found: list[tuple[float, str]] = []

    def look(name: str, module: nn.Module, args: tuple[object, ...], output: object) -> None:
        given = args[0] if args else None
        if isinstance(output, Tensor) and isinstance(given, Tensor) and output.numel():
            before, after = float(given.abs().amax()), float(output.abs().amax())
            told = f"{name}, from {before:.3g} to {after:.3g}"
            found.append((after / max(before, torch.finfo(torch.float32).tiny), told))

    with each_layer(model, look):
        model(inputs)
    if not found:
        return "every layer's output is finite, the loss itself is not"
    return f"every layer's output is finite, and grows most in {max(found)[1]}"


Look = Callable[[str, nn.Module, tuple[object, ...], object], None]


@contextmanager
def each_layer(model: nn.Module, look: Look) -> Iterator[None]:
    """Let `look` see the calls of all layers while inside: name, layer, arguments, output."""

    def hook(name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        # what it computes with is no part of the model
        return lambda module, args, output: apart(look, name, module, args, output)

    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    owners = [(n, m) for n, m in model.named_modules() if isinstance(m, QuantLayer)]
    seen = dict([*leaves, *owners]).items()
    handles = [m.register_forward_hook(hook(n or "the model")) for n, m in seen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def loss_of(loss: Loss, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the loss [].

    Raises:
        TrainingError: If a label is none of the classes, which torch says in other words.
    """
    try:
        return loss(logits, labels)
    except (IndexError, RuntimeError, RecipeError) as error:  # a user's loss fails with the last
        if why := wrong_labels(logits, labels):
            raise TrainingError(why) from error
        raise


def wrong_labels(logits: Tensor, labels: Tensor) -> str:
    """Say which labels [B] are none of the classes of logits [B, classes], "" where none is."""
    if labels.is_floating_point() or logits.ndim != 2 or not labels.numel():
        return ""
    low, high, classes = int(labels.min()), int(labels.max()), logits.shape[1]
    if low >= 0 and high < classes:
        return ""
    return f"labels run from {low} to {high}; needed are 0..{classes - 1}, the {classes} classes"
