"""Fake-quantized model in, integer model out.

to_integer: the conversion. fold_batch_norm: into scales and biases. proof: that both say the same.
report: what it cost.
"""
