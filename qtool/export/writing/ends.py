"""What stands before and behind a network in a file: preparing of pictures, and softmax.

With `preprocess` the file takes uint8 [N, height, width, channels], pictures of any size, decoded,
and does with them what `qtool.images.preprocess` says; with `softmax` it gives shares, too.
"""

from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from qtool.errors import InputError
from qtool.export.writing.preparing import IMAGES, PREFIX, PREPARED, PreparingNodes
from qtool.images.preprocess import Preprocess
from qtool.images.usage import Usage

LOGITS = "logits"
SHARES = "shares"
RANK = 4  # of images


@dataclass(frozen=True)
class Ends:
    """What a file does beside what its network does.

    Attributes:
        preprocess: it takes decoded pictures of any size, and prepares them.
        softmax: it gives `shares` beside `logits`.
    """

    preprocess: bool = False
    softmax: bool = False

    def __bool__(self) -> bool:
        """Tell whether there is any of it."""
        return self.preprocess or self.softmax

    def refuse_unless_known(self, usage: Usage) -> None:
        """Check that it is known how pictures are prepared, where a file is to do that.

        Raises:
            InputError: If it is not, or shares of classes are no softmax.
        """
        if self.preprocess and usage.preprocess is None:
            raise InputError("--preprocess: the network is shown no pictures, or nobody says how")
        if self.softmax and usage.several:
            why = "an image may have several classes, whose shares are the sigmoid of each logit"
            raise InputError(f"--softmax: {why}; leave it out")


def put_ends(
    model: onnx.ModelProto, ends: Ends, usage: Usage, *, by_products: bool = False
) -> None:
    """Put what is wanted before and behind the network of a file, in place.

    Args:
        model: from `write_onnx`.
        ends: what is wanted.
        usage: says how pictures are prepared.
        by_products: resize without Resize.

    Raises:
        InputError: If the network does not take one batch of pictures, or give one of logits.
    """
    ends.refuse_unless_known(usage)
    if ends.preprocess:
        assert usage.preprocess is not None
        _prepare(model.graph, usage.preprocess, by_products=by_products)
    if ends.softmax:
        _softmax(model.graph)


def _prepare(graph: onnx.GraphProto, rule: Preprocess, *, by_products: bool) -> None:
    """Let a graph take decoded pictures of any size."""
    names, given = [value.name for value in graph.input], graph.input[0]
    dimensions = list(given.type.tensor_type.shape.dim)
    if names != [IMAGES] or len(dimensions) != RANK:
        raise InputError(f"--preprocess: the file takes {', '.join(names)}, not a batch of images")
    for node in graph.node:
        node.input[:] = [PREPARED if name == IMAGES else name for name in node.input]
    for note in graph.quantization_annotation:
        if note.tensor_name == IMAGES:
            note.tensor_name = PREPARED
    inner = graph.value_info.add()  # the sizes are fixed there, which the graph does not tell
    inner.CopyFrom(given)
    inner.name = PREPARED
    batch = dimensions[0].dim_param or dimensions[0].dim_value
    sizes = [batch, "height", "width", rule.depth]
    given.CopyFrom(helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, sizes))
    made = PreparingNodes()
    made.prepare(rule, by_products=by_products)
    before = list(graph.node)
    del graph.node[:]
    graph.node.extend([*made.nodes, *before])
    graph.initializer.extend(made.constants)


def _softmax(graph: onnx.GraphProto) -> None:
    """Let a graph give the shares of classes, too."""
    found = [value for value in graph.output if value.name == LOGITS]
    if len(graph.output) != 1 or not found or len(found[0].type.tensor_type.shape.dim) != 2:
        names = ", ".join(value.name for value in graph.output)
        raise InputError(f"--softmax: the file gives {names}, not a row of logits for each image")
    graph.node.append(helper.make_node("Softmax", [LOGITS], [SHARES], name="softmax", axis=-1))
    graph.output.add().CopyFrom(found[0])
    graph.output[-1].name = SHARES


def takes_pictures(model: onnx.ModelProto) -> bool:
    """Tell whether a file takes decoded pictures, and prepares them."""
    return any(
        value.name == IMAGES and value.type.tensor_type.elem_type == TensorProto.UINT8
        for value in model.graph.input
    )


def preparing_alone(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return what a file does to pictures before its network sees them, as a file of its own."""
    graph = model.graph
    nodes = [node for node in graph.node if node.name.startswith(PREFIX)]
    used = {name for node in nodes for name in node.input}
    inner = next(value for value in graph.value_info if value.name == PREPARED)
    alone = helper.make_graph(
        nodes,
        "preprocess",
        [graph.input[0]],
        [inner],
        [constant for constant in graph.initializer if constant.name in used],
    )
    made = helper.make_model(alone, opset_imports=list(model.opset_import))
    made.ir_version = model.ir_version
    return made
