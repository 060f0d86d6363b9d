"""Nodes that prepare decoded pictures of any size, in standard operators of opset 18.

They are resized as bytes, which ONNX Runtime does as Pillow does: by a triangle as wide as the
reduction, cut off at the borders (`exclude_outside`), rounded after each direction. For runtimes
whose Resize does otherwise, the same is written as two products with matrices of those weights,
which costs more. Then the middle is cut out, and scaled.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from qtool.images.preprocess import Preprocess

IMAGES = "images"
PREPARED = "images.prepared"
PREFIX = "preprocess."  # of the names of nodes, tensors and constants


class PreparingNodes:
    """Nodes and constants between the tensors IMAGES and PREPARED."""

    def __init__(self) -> None:
        """Start with none."""
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    @property
    def constants(self) -> list[onnx.TensorProto]:
        """Return the constants that the nodes read."""
        return list(self._constants.values())

    def prepare(self, rule: Preprocess, *, by_products: bool) -> None:
        """Make what a rule says; `by_products` resizes without Resize."""
        planes = self._add("Transpose", [IMAGES], "planes", perm=[0, 3, 1, 2])
        if rule.resize.rule == "squeeze":
            size = self._whole("size", *rule.size)
        else:
            size = self._following_shorter_side(planes, rule.resize.pixels)
        shown = (self._products if by_products else self._resized)(planes, size)
        if rule.crop == "center":
            shown = self._middle(shown, size, rule.size)
        numbers = self._add("Cast", [shown], "numbers", to=TensorProto.FLOAT)
        # gray becomes as many channels as mean and std have
        centered = self._add("Sub", [numbers, self._levels("mean", rule, rule.mean)], "centered")
        self._add("Div", [centered, self._levels("std", rule, rule.std)], PREPARED)

    def _following_shorter_side(self, planes: str, pixels: int) -> str:
        """Return the height and width at which the shorter side has so many pixels."""
        size = self._add("Shape", [planes], "original_size", start=2, end=4)
        shorter = self._add("ReduceMin", [size], "shorter_side", keepdims=1)
        larger = self._add("Mul", [size, self._whole("pixels", pixels)], "size_times_pixels")
        return self._add("Div", [larger, shorter], "resized_size")

    def _resized(self, planes: str, size: str) -> str:
        """Return images at a size."""
        rows = self._add("Shape", [planes], "batch_and_channels", start=0, end=2)
        sizes = self._add("Concat", [rows, size], "sizes", axis=0)
        return self._add(
            "Resize",
            [planes, "", "", sizes],
            "resized",
            mode="linear",
            antialias=1,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        )

    def _products(self, planes: str, size: str) -> str:
        """Return images at a size, whole levels in float: along rows, then along columns."""
        numbers = self._add("Cast", [planes], "bytes", to=TensorProto.FLOAT)
        before = self._add("Shape", [planes], "bytes_size", start=2, end=4)
        across = self._weights("width", before, size, 1)
        narrow = self._rounded("narrow", self._add("MatMul", [numbers, across], "narrow"))
        turned = self._add("Transpose", [narrow], "turned", perm=[0, 1, 3, 2])
        down = self._weights("height", before, size, 0)
        low = self._rounded("low", self._add("MatMul", [turned, down], "low"))
        return self._add("Transpose", [low], "resized", perm=[0, 1, 3, 2])

    def _weights(self, side: str, before: str, after: str, place: int) -> str:
        """Return what each pixel of a side gives to each new one, [old, new]."""
        old, old_count = self._centers(f"{side}.old", before, place)
        new, new_count = self._centers(f"{side}.new", after, place)
        one = self._number("one", 1.0)
        reduction = self._add("Div", [old_count, new_count], f"{side}.reduction")
        reach = self._add("Max", [reduction, one], f"{side}.reach")
        in_old = self._add("Mul", [new, reduction], f"{side}.in_old_pixels")
        column = self._add("Unsqueeze", [old, self._whole("second", 1)], f"{side}.column")
        off = self._add("Sub", [column, in_old], f"{side}.off")
        apart = self._add("Abs", [off], f"{side}.apart")
        far = self._add("Div", [apart, reach], f"{side}.far")
        near = self._add("Relu", [self._add("Sub", [one, far], f"{side}.near")], f"{side}.triangle")
        total = self._add("ReduceSum", [near, self._whole("first", 0)], f"{side}.total", keepdims=1)
        return self._add("Div", [near, total], f"{side}.weights")

    def _centers(self, name: str, size: str, place: int) -> tuple[str, str]:
        """Return where the pixels of a side have their middle, [count], and the count."""
        first, step = (
            self._constant(word, np.array(v, np.int64)) for word, v in (("zero", 0), ("step", 1))
        )
        which = self._constant(f"place_{place}", np.array(place, np.int64))
        count = self._add("Gather", [size, which], f"{name}.count", axis=0)
        steps = self._add("Range", [first, count, step], f"{name}.steps")
        number = self._add("Cast", [steps], f"{name}.numbers", to=TensorProto.FLOAT)
        centers = self._add("Add", [number, self._number("half", 0.5)], f"{name}.centers")
        return centers, self._add("Cast", [count], f"{name}.float_count", to=TensorProto.FLOAT)

    def _rounded(self, name: str, values: str) -> str:
        """Return whole grey levels; halves are rounded up."""
        raised = self._add("Add", [values, self._number("half", 0.5)], f"{name}.raised")
        return self._add("Floor", [raised], f"{name}.levels")

    def _middle(self, shown: str, size: str, cut: tuple[int, int]) -> str:
        """Return the middle of images; half a pixel is rounded to even, as Python does."""
        wanted = self._whole("cut_size", *cut)
        spare = self._add("Sub", [size, wanted], "spare")
        number = self._add("Cast", [spare], "spare.number", to=TensorProto.FLOAT)
        half = self._add("Mul", [number, self._number("half", 0.5)], "spare.half")
        even = self._add("Round", [half], "spare.rounded")
        start = self._add("Cast", [even], "start", to=TensorProto.INT64)
        end = self._add("Add", [start, wanted], "end")
        return self._add("Slice", [shown, start, end, self._whole("sides", 2, 3)], "middle")

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: object) -> str:
        """Append a node; return the name of its output."""
        name = output if output == PREPARED else PREFIX + output
        node = helper.make_node(operator, inputs, [name], name=PREFIX + output)
        node.attribute.extend(helper.make_attribute(key, v) for key, v in attributes.items())
        self.nodes.append(node)
        return name

    def _constant(self, name: str, value: np.ndarray) -> str:
        """Keep a constant, once; return its name."""
        full = PREFIX + name
        self._constants[full] = numpy_helper.from_array(value, full)
        return full

    def _whole(self, name: str, *values: int) -> str:
        return self._constant(name, np.array(values, np.int64))

    def _number(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _levels(self, name: str, rule: Preprocess, values: tuple[float, ...]) -> str:
        """Keep mean or std in grey levels, [1, channels, 1, 1]; return its name."""
        return self._constant(name, rule.scaled(values).reshape(1, -1, 1, 1))
