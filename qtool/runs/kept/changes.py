"""What a run does to its weights' codes, step by step: recorded while it trains, and read again.

A change point is a weight's index, its new code and the number of training steps after which it
has that code. Records lie in the run's folder, a file for each epoch, so that a run that was
stopped goes on with them: what was recorded after the checkpoint is recorded again.

Reference: Schoenbauer et al., 2024, arXiv:2405.05171.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from qtool.errors import InputError
from qtool.files.whole import write_atomically
from qtool.numerics.grid import quantize
from qtool.quantizers.layers import QuantLayer, quant_layers
from qtool.quantizers.weights import WeightQuantizer
from qtool.runs.kept.folder import RunFolder
from qtool.tensor_files import read_safetensors
from qtool.training.watcher import Watcher, WatcherState

WATCHED = 65_536  # weights of a layer that are recorded at most: an even sample
PREDICTIONS, LABELS = "predictions", "labels"


class _Watched:
    """One layer's weight, as it was when last looked at.

    Attributes:
        weights, codes: of the watched elements [N], float32 and int8.
        path: sum over steps and elements of |w_t+1 - w_t|, float64 [].
    """

    def __init__(self, layer: QuantLayer, quantizer: WeightQuantizer, path: Tensor | None) -> None:
        self.layer, self.quantizer = layer, quantizer
        self.stride = -(-layer.weight.numel() // WATCHED)
        self.weights, self.codes = self._now()
        zero = torch.zeros((), dtype=torch.float64)
        self.path = (zero if path is None else path).to(layer.weight.device)
        self.forget()

    def forget(self) -> None:
        """Begin a new epoch's record."""
        self.index: list[Tensor] = []
        self.code: list[Tensor] = []
        self.step: list[Tensor] = []

    def _now(self) -> tuple[Tensor, Tensor]:
        given = self.layer.whole_weight.detach()
        held = self.quantizer.before_rounding(given).reshape(-1)[:: self.stride]
        weight = self.quantizer.layout.rows(given)
        # of a fixed range all channels have the same scale
        scale = self.quantizer.used_scale.reshape(-1)[0]
        codes = quantize(held, scale, 0, self.quantizer.known_grid).to(torch.int8)
        return weight.reshape(-1)[:: self.stride].clone(), codes

    def look(self, step: int) -> None:
        """Note what has changed after so many training steps."""
        weights, codes = self._now()
        self.path += (weights - self.weights).abs().sum(dtype=torch.float64)
        changed = (codes != self.codes).nonzero().flatten()
        if len(changed):
            self.index.append(changed.to(torch.int32))
            self.code.append(codes[changed])
            self.step.append(torch.full_like(self.index[-1], step))
        self.weights, self.codes = weights, codes

    def go_on(self, kept: WatcherState) -> None:
        """Take back what `tensors` returned.

        Raises:
            ValueError: If something has another type or shape.
        """
        for key, own in self.tensors().items():
            grows = key in ("index", "code", "step")
            if kept[key].dtype != own.dtype or (not grows and kept[key].shape != own.shape):
                raise ValueError(f"{key} of the changes is not what it was")
        own = {key: value.to(self.codes.device) for key, value in kept.items()}
        self.weights, self.codes, self.path = own["weights"], own["codes"], own["path"]
        self.index, self.code, self.step = [own["index"]], [own["code"]], [own["step"]]

    def tensors(self) -> dict[str, Tensor]:
        """Return what is kept of the epoch."""
        none = torch.zeros(0, dtype=torch.int32, device=self.codes.device)
        return {
            "weights": self.weights,
            "codes": self.codes,
            "path": self.path,
            "scale": self.quantizer.used_scale.reshape(-1)[0],
            "index": torch.cat([none, *self.index]),
            "code": torch.cat([none.to(torch.int8), *self.code]),
            "step": torch.cat([none, *self.step]),
        }


class ChangeRecorder(Watcher):
    """Watches a model while it trains, without changing a number."""

    @torch.no_grad()
    def __init__(
        self, model: nn.Module, folder: RunFolder, done: int, *, begun: bool = False
    ) -> None:
        """Begin, or go on after `done` epochs whose records lie in the run's folder.

        Args:
            model: prepared, as it is now.
            folder: of the run.
            done: epochs.
            begun: the next one is begun, and what it has come to is restored.

        Raises:
            InputError: If the record of the last of them is missing.
        """
        self.folder = folder.changes
        kept = _read(self.folder / _file(done)) if done else {}
        self.watched = {
            name: _Watched(layer, layer.weight_quantizer, kept.get(f"{name}.path"))
            for name, layer in quant_layers(model).items()
            if layer.weight_quantizer is not None
        }
        self.judged: list[tuple[Tensor, Tensor]] = []
        if not done and not begun:
            self._keep(0)

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Look at the weights after `step` training steps, before the next one."""
        for watched in self.watched.values():
            watched.look(step)

    def validated(self, logits: Tensor, labels: Tensor) -> None:
        """Note what the model says of a batch of images that judge the epoch."""
        self.judged.append((logits.argmax(1).cpu(), labels.cpu()))

    def state(self) -> WatcherState:
        """Return the record of the epoch so far."""
        return {
            f"{name}.{key}": value
            for name, watched in self.watched.items()
            for key, value in watched.tensors().items()
        }

    def restore(self, state: WatcherState) -> None:
        """Go on with a record.

        Raises:
            KeyError: If it is of other layers.
        """
        for name, watched in self.watched.items():
            watched.go_on({key: state[f"{name}.{key}"] for key in watched.tensors()})

    def end_epoch(self, epoch: int, step: int) -> None:
        """Write the record of an epoch, which ended after `step` training steps."""
        self.before_step(step)
        self._keep(epoch)

    def _keep(self, epoch: int) -> None:
        tensors = {
            f"{name}.{key}": value.cpu().contiguous()
            for name, watched in self.watched.items()
            for key, value in watched.tensors().items()
        }
        if self.judged:
            said, labels = (torch.cat(parts) for parts in zip(*self.judged, strict=True))
            tensors |= {PREDICTIONS: said.to(torch.int16), LABELS: labels.to(torch.int16)}
        write_atomically(self.folder / _file(epoch), lambda place: save_file(tensors, place))
        self.judged = []
        for watched in self.watched.values():
            watched.forget()


@dataclass(frozen=True)
class LayerRecord:
    """What one layer's weights did; N watched weights, E epochs, P change points.

    Attributes:
        weights, codes: at the beginning and after each epoch, [E + 1, N].
        path: sum over steps and weights of |w_t+1 - w_t| up to the same moments, float64 [E + 1].
        scale: step size.
        index, code, step: of the change points, sorted by index and then by step.
    """

    weights: Tensor
    codes: Tensor
    path: Tensor
    scale: Tensor
    index: NDArray[np.int32]
    code: NDArray[np.int8]
    step: NDArray[np.int32]

    @property
    def start(self) -> NDArray[np.int8]:
        """Return the codes before the first step, [N]."""
        return self.codes[0].numpy()


@dataclass(frozen=True)
class Record:
    """What a run did.

    Attributes:
        layers: by name.
        predictions, labels: classes of the images that judge each epoch, [images] for each; those
            of the validation set or, where training images are held out, those but at the end.
    """

    layers: dict[str, LayerRecord]
    predictions: list[Tensor]
    labels: list[Tensor]


def read_record(folder: RunFolder, epochs: int) -> Record:
    """Return what was recorded of a run of so many epochs.

    Raises:
        InputError: If a file is missing or damaged.
    """
    kept = [_read(folder.changes / _file(epoch)) for epoch in range(epochs + 1)]
    names = [key.removesuffix(".weights") for key in kept[0] if key.endswith(".weights")]
    try:
        layers = {name: _layer_record(name, kept) for name in names}
        said, labels = ([k[key] for k in kept[1:]] for key in (PREDICTIONS, LABELS))
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{folder.changes}: damaged; delete {folder} to train anew") from error
    return Record(layers, said, labels)


def _layer_record(name: str, kept: list[dict[str, Tensor]]) -> LayerRecord:
    index, code, step = (
        torch.cat([k[f"{name}.{key}"] for k in kept]).numpy() for key in ("index", "code", "step")
    )
    order = np.argsort(index, kind="stable")  # steps are in order already
    weights, codes, path = (
        torch.stack([k[f"{name}.{key}"] for k in kept]) for key in ("weights", "codes", "path")
    )
    scale = kept[0][f"{name}.scale"]
    return LayerRecord(weights, codes, path, scale, index[order], code[order], step[order])


def _file(epoch: int) -> str:
    return f"epoch-{epoch}.safetensors"


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return read_safetensors(path)
    except FileNotFoundError as error:
        why = f"no such record; delete {path.parent.parent} to train it anew"
        raise InputError(f"{path}: {why}") from error
    except (OSError, ValueError, SafetensorError) as error:
        why = f"damaged ({error}); delete {path.parent.parent} to train it anew"
        raise InputError(f"{path}: {why}") from error
