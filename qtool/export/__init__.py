"""Integer model in, ONNX file out, proven in the runtime.

onnx_qdq: the file. trace, qdq_modules, qdq_joins: what torch.onnx sees. on_codes, clips, pairs:
what keeps values bytes between integer operators. weights, packing: codes at their true width;
forms: which form each weight has. insert: new parts of a traced graph. float_weights: what keeps a
runtime from quantizing them, unchanged: that it did not. targets: runtimes. names: of inputs and
outputs; node_names: of nodes. gate, agreement, control, site_codes, measure: the proof and the
figures. islands, why_slow, by_design: what runs in integers, and why the rest does not. latency,
float_model: how fast, and beside what. annotation, lint: what is said of quantized tensors.
saturation: layers that may saturate, and the form in which they cannot.
"""
