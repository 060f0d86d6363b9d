"""`qtool.layer.NAME` in a file's metadata: what stands for one layer's weight, and its hashes.

Tools keep metadata where they drop annotations, fold what unpacks a weight, and rename tensors. So
this says enough of each layer to find its weight again in whatever form it then stands, to see that
it is the same, and to write it as it was.
"""

import base64
import hashlib
import json
from collections.abc import Mapping

import numpy as np
import onnx
from pydantic import TypeAdapter, ValidationError

from qtool.export.targets.target import Array
from qtool.export.writing.annotation import Annotation
from qtool.files.json_data import typed_json
from qtool.integer.layers import IntegerLayer
from qtool.numerics.grid import IntegerGrid, Kind
from qtool.numerics.saturation import MIDDLE
from qtool.reports.result import Result

PREFIX = "qtool.layer."


class Hashes(Result):
    """SHA-256 of numbers as they lie in memory: little endian, in C order; "" where there is none.

    A file whose codes stand as uint8 around 128 has the hashes of the integer model's codes.
    """

    codes: str
    """Of int8."""
    scale: str
    """Of float32."""
    zero_point: str
    """Of int8, or uint8 where it is 128."""
    bias: str = ""
    """Of int32, or of float32 where it is added after dequantization."""


class LayerMetadata(Result):
    """What a file says of one layer's weight."""

    bits: int
    grid: Kind
    axis: int | None
    """That has a scale for each of its channels; null where there is one scale for all."""
    shape: list[int]
    """Of the codes, as the file has them."""
    scales: str
    """Base64 of float32, little endian: a real weight is code x scale."""
    sha256: Hashes
    tensors: dict[str, str]
    """Names of codes, scale and zero_point, as its annotation has them."""

    @property
    def scale(self) -> Array:
        """The scales, float32 [channels] or [].

        Raises:
            ValueError: If they are not what base64 of float32 can be.
        """
        found = np.frombuffer(base64.b64decode(self.scales, validate=True), "<f4")
        return found if self.axis is not None else found.reshape(())


_LAYER = TypeAdapter(LayerMetadata)


def digest(array: Array) -> str:
    """Return the SHA-256 of an array, little endian in C order."""
    little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
    return hashlib.sha256(little.tobytes()).hexdigest()


def zero_points(layer: LayerMetadata) -> Array:
    """Return what a file adds to a layer's codes: int8 zeros, or uint8 of 128."""
    middle = np.full(layer.scale.shape, MIDDLE, np.uint8)
    is_middle = digest(middle) == layer.sha256.zero_point
    return middle if is_middle else np.zeros(layer.scale.shape, np.int8)


def metadata_of(layer: IntegerLayer, note: Annotation, zero_point: int) -> LayerMetadata:
    """Return what a file says of a layer.

    Args:
        layer: of the integer model, with a quantized weight.
        note: the annotation of its weight.
        zero_point: what the file adds to the codes.
    """
    spec = layer.spec
    assert layer.weight_scale is not None
    assert spec.weight is not None
    scale: Array = layer.weight_scale.detach().cpu().numpy().astype(np.float32)
    zeros = np.full(scale.shape, zero_point, np.uint8 if zero_point else np.int8)
    bias = "" if layer.bias is None else digest(layer.bias.detach().cpu().numpy())
    return LayerMetadata(
        bits=spec.weight.bits,
        grid=spec.weight.kind,
        axis=(layer.layout.axis or 0) if scale.ndim else None,
        shape=list(layer.codes_of_file.shape),
        scales=base64.b64encode(scale.astype("<f4").tobytes()).decode(),
        sha256=Hashes(
            codes=digest(layer.codes_of_file.cpu().numpy().astype(np.int8)),
            scale=digest(scale),
            zero_point=digest(zeros),
            bias=bias,
        ),
        tensors={"codes": note.tensor, "scale": note.scale, "zero_point": note.zero_point},
    )


def write_layers(model: onnx.ModelProto, layers: Mapping[str, LayerMetadata]) -> None:
    """Put what is said of each layer into a model's metadata, by the layer's name."""
    for name, layer in layers.items():
        said = json.dumps(layer.to_json(), separators=(",", ":"))
        model.metadata_props.add(key=f"{PREFIX}{name}", value=said)


def read_layers(model: onnx.ModelProto) -> dict[str, LayerMetadata]:
    """Return what a model says of each of its layers, by their names.

    Raises:
        ValueError: If what it says of one cannot be read; names it.
    """
    found: dict[str, LayerMetadata] = {}
    for entry in model.metadata_props:
        if entry.key.startswith(PREFIX):
            try:
                layer = typed_json(_LAYER, entry.value)
                _ = layer.scale, IntegerGrid(layer.bits, layer.grid)
            except (ValidationError, ValueError) as error:
                raise ValueError(f"its metadata {entry.key} is damaged") from error
            found[entry.key.removeprefix(PREFIX)] = layer
    return found
