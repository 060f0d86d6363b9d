"""Integer model in, ONNX file out, proven in the runtime."""
