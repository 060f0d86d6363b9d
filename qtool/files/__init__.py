"""Files, written whole or not at all, and read with errors that name them.

whole: written in one move. scratch: where they lie before. held: folders that may not vanish
meanwhile. lock: one writer in a folder. kinds: what a file is, by its name. reading: what is wrong
with a file is said as the file's. json_data, yaml_data: each read in one way, within limits.
safetensors_data: what such a file says of itself. archives: zip files, whose sizes are held against
the file's. checksums: what was written, told by SHA-256, and the file before it.
safetensors_digest: the same in one file. npz: NumPy arrays, likewise held against their file.
"""
