"""Integer model in, ONNX file out.

request: what an export is asked for; onnx_qdq: the file. traced_model, trace, qdq_modules,
qdq_joins: what torch.onnx sees; poolings: what it has no function for. on_codes, clips, pairs: what
keeps values bytes between integer operators. written_weights, weights, packing, unpacking: codes at
their true width, weight_sizes: what those take; native: in ONNX's own integers; forms: which form
each weight has; saturation: layers that may saturate, and the form in which they cannot. insert:
new parts of a traced graph. float_weights: what keeps a runtime from quantizing them. added:
roundings before additions; arithmetic: files without QuantizeLinear; quant_nodes: files in QONNX's
operators, quant_width: how those know a grid. names: of inputs and outputs; node_names: of nodes;
sizes: of images, which may be open. annotation: what is said of quantized tensors; layer_metadata:
of each layer's weight; quantized_values: what a graph tells of them. ends: what stands before and
behind a network; preparing: pictures into what it takes. saved: files, those of more than 2 GiB
with their tensors beside them. file_digest: what a file was written as, kept in it; wire: protobuf
without onnx.
"""
