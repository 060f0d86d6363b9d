"""Modules that hold scales: fake quantizers and the layers that use them.

prepare: puts them into a model. layers, relu: where they stand. weights, activations: of what, both
a fake_quantize. rounding_function, kernels: the rounding and its backward pass. calibrate: scales
from data. oscillation: weights that flip.
"""
