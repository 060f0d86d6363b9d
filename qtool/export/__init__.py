"""Integer model in, ONNX file out, proven in the runtime.

writing: the file. proof: that it is right, and how fast. targets: runtimes, how files are written
for them and run in them. README.md: how weights that could saturate are written, and why.
"""
