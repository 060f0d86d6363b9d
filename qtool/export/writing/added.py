"""What is rounded before it is added, for a runtime that would leave the rounding out.

OpenVINO makes one kernel of a convolution, the QuantizeLinear and DequantizeLinear behind it and
the addition that reads those, and drops the first rounding on purpose where it comes right behind
the convolution: it adds what was not rounded. With an operator between that changes nothing, and
that no runtime takes away, it rounds, in the same kernel and in the same time.
"""

import onnx_ir as ir

from qtool.export.writing.insert import insert_node

MULTIPLIES = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def round_before_adding(graph: ir.Graph) -> None:
    """Put LeakyRelu with a slope of 1 before each rounding of a layer's output that is added."""
    for node in list(graph):
        given = node.inputs[0] if node.op_type == "QuantizeLinear" else None
        maker = given.producer() if given is not None else None
        if given is None or maker is None or maker.op_type not in MULTIPLIES or not _is_added(node):
            continue
        same = insert_node("LeakyRelu", [given], f"{given.name}.same", node)
        made = same.producer()
        assert made is not None
        made.attributes["alpha"] = ir.AttrFloat32("alpha", 1.0)
        made.name = f"{maker.name.rpartition('/')[0]}/LeakyRelu" if maker.name else None
        node.replace_input_with(0, same)


def _is_added(quantize: ir.Node) -> bool:
    """Tell whether an addition reads what a quantizer puts out, clipped or not."""
    codes = list(quantize.outputs[0].consumers())
    codes += [
        reader for node in codes if node.op_type == "Clip" for reader in node.outputs[0].consumers()
    ]
    pairs = [node for node in codes if node.op_type == "DequantizeLinear"]
    return any(reader.op_type == "Add" for pair in pairs for reader in pair.outputs[0].consumers())
