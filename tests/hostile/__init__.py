"""Files that nobody meant: mutated recipes, checkpoints, integer models, ONNX files, and bombs.

mutations: what is done to bytes and to plain data. recipes, runs, integers, onnx_files: what is
made of each kind of file, and the commands that read it. judging: a command in this process, its
exit code, time and memory. __main__: many cases, in a process that may die of one.

`python -m tests.hostile recipes --first 0 --count 3000` prints what is not as it must be.
"""
