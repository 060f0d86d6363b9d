"""Integer model in, ONNX file out, proven in the runtime.

reading: files of anyone. writing: the file. proof: that it is right, and how fast. targets:
runtimes, how files are written for them and run in them. repair: what other tools took from a file,
given back.
README.md: how values stand in a file, and why.
"""
