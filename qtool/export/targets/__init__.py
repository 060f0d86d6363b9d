"""Runtimes that a file can be written for: one file each, how it is written and how it is run.

target: what every target gives, and the table of them. onnxruntime: ONNX Runtime on the CPU;
onnxruntime_static: its own quantization. openvino: OpenVINO on the CPU. portable: any reader.
web: onnxruntime-web. qonnx: FINN and hls4ml.
int8, int4, int2: plain and native integers, for ONNX Runtime and other readers.
"""
