"""What may explain that one arm does better than another, looked at after each epoch.

The loss of a quantized network is constant almost everywhere in its latent weights; training
follows a coarse gradient instead. How near that is to the gradient of the loss itself, smoothed, is
found by moving all latent weights u (in steps of their grids) along random directions z and back:

    d_k = (L(u + z_k / 2) - L(u - z_k / 2)),   c_k = <g, z_k>,   z_k ~ N(0, I),   k = 1 .. K
    cosine = sum c_k d_k / sqrt(sum c_k^2 sum d_k^2)

which is an estimate of the cosine between the coarse gradient g and the gradient of E L(u + z / 2),
with a standard error of about 1 / sqrt(K): of one epoch it says little, over epochs and seeds it
adds up. All is of one batch, of a copy of the network as it is validated, so that training neither
sees it nor draws a random number.

Reference: Spall, 1992, Multivariate stochastic approximation using a simultaneous perturbation
gradient approximation, for differences along random directions; Yin et al., 2019, arXiv:1903.05662,
for coarse gradients that descend.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from qtool.graph.copies import copy_of
from qtool.graph.inputs import where_float64
from qtool.quantizers.control import without_blends
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.measures import activation_quantizers, clipped, saturated
from qtool.training.losses import Loss
from qtool.training.watcher import Batch, Seen, Watcher

DIRECTIONS = 32
FLOAT_STEP = 0.05  # of a float weight's root mean square: how far it is moved for a step


class Explanation(Watcher):
    """Looks at a model on one batch after each epoch; the model is left as it is."""

    def __init__(self, model: nn.Module, batch: Batch, loss: Loss, seed: int) -> None:
        """Take a model, a batch of images [B, C, H, W] and labels [B], and the training's loss.

        Directions depend on the seed and on nothing else, so that each epoch has the same.
        """
        self._model, self._batch, self._loss, self._seed = model, batch, loss, seed

    def measures(self) -> Mapping[str, Seen]:
        """Return the cosine, and which share of the activations saturates, by quantizer.

        coarse_gradient_cosine is None where no weight trains, or one of the two gradients is 0.
        """
        twin = copy_of(self._model).eval()
        gradients, shares = coarse_gradients(twin, self._batch, self._loss)
        found = None
        if gradients:
            found = cosine(*slopes(twin, gradients, self._batch, self._loss, self._seed))
        return {"coarse_gradient_cosine": found, "saturated_activations": shares}


def coarse_gradients(
    model: nn.Module, batch: Batch, loss: Loss
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Return layer -> gradient of its latent weight, and quantizer -> share that saturates.

    Args:
        model: prepared, in evaluation mode.
        batch: images and labels.
        loss: of logits and labels.
    """
    layers = {name: layer for name, layer in quant_layers(model).items() if _trains(layer)}
    weights = [layer.weight for layer in layers.values()]
    with ExitStack() as watched, torch.enable_grad():
        shares = _watch_activations(model, watched)
        value = loss(model(batch[0]).float(), batch[1])
        given = torch.autograd.grad(value, weights, allow_unused=True) if weights else ()
    gradients = {
        name: gradient for name, gradient in zip(layers, given, strict=True) if gradient is not None
    }
    return gradients, {name: seen / count for name, (seen, count) in shares.items() if count}


@torch.no_grad()
def slopes(
    model: nn.Module, gradients: Mapping[str, Tensor], batch: Batch, loss: Loss, seed: int
) -> tuple[list[float], list[float]]:
    """Return, along each direction, the coarse gradient's slope c_k and the loss's own d_k.

    The loss is that of the network quantized in full, blends or not. The weights of `model` are
    moved, and put back.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {name: layer for name, layer in quant_layers(model).items() if name in gradients}
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    steps = {name: step_of(layer) for name, layer in layers.items()}
    wide = {name: where_float64(gradients[name]).double() for name in layers}
    coarse, own = list[float](), list[float]()
    with without_blends(model):
        for _ in range(DIRECTIONS):
            moves = {
                name: steps[name] * torch.randn(weight.shape, generator=generator).to(weight.device)
                for name, weight in before.items()
            }
            coarse.append(
                sum(float((wide[n] * where_float64(z).double()).sum()) for n, z in moves.items())
            )
            ends = list[float]()
            for half in (0.5, -0.5):
                for name, layer in layers.items():
                    layer.weight.copy_(before[name] + half * moves[name])
                ends.append(float(loss(model(batch[0]).float(), batch[1])))
            own.append(ends[0] - ends[1])
        for name, layer in layers.items():
            layer.weight.copy_(before[name])
    return coarse, own


def cosine(coarse: Sequence[float], own: Sequence[float]) -> float | None:
    """Return sum c d / sqrt(sum c^2 sum d^2); None where one side is 0 throughout."""
    c, d = (torch.tensor(values, dtype=torch.float64) for values in (coarse, own))
    lengths = float(c.norm() * d.norm())
    return float(c @ d) / lengths if lengths else None


def step_of(layer: QuantLayer) -> Tensor:
    """Return how far a latent weight moves for a step, a tensor that broadcasts over the weight.

    Of a float weight, and of a range that squashes the weight first, it is FLOAT_STEP times its
    root mean square.
    """
    quantizer, weight = layer.weight_quantizer, layer.weight.detach()
    if quantizer is None or quantizer.squashes:
        return FLOAT_STEP * weight.square().mean().sqrt()
    rows = layer.layout.rows(weight)
    return layer.layout.weight(quantizer.used_scale.expand(rows.shape))


def _trains(layer: QuantLayer) -> bool:
    """Tell whether a layer has a latent weight of its own that training moves."""
    return isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad


def _watch_activations(model: nn.Module, watched: ExitStack) -> dict[str, tuple[float, int]]:
    """Return quantizer -> values that saturate and all, filled in while the model runs."""
    seen: dict[str, tuple[float, int]] = {}

    def watch(name: str, quantizer: nn.Module) -> None:
        def look(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, object]) -> None:
            x = clipped(args[0].detach().float(), kwargs)
            before, count = seen.get(name, (0.0, 0))
            share = saturated(x, quantizers[name].on_grid) * x.numel()
            seen[name] = before + share, count + x.numel()

        handle = quantizer.register_forward_pre_hook(look, with_kwargs=True)
        watched.callback(handle.remove)

    quantizers = activation_quantizers(model)
    for name, quantizer in quantizers.items():
        if quantizer.ready:
            watch(name, quantizer)
    return seen
