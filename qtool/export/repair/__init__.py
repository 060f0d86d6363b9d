"""Files that other tools have rewritten, as qtool would have written them.

repaired: the whole story, and its proof. packing: weights that tools unpacked, at their true width
again. annotations: what a graph says of its quantized tensors.
"""
