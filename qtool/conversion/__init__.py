"""Fake-quantized model in, integer model out.

to_integer: swaps layers and ReLUs. parts: codes, scales and bias of a layer; fold_batch_norm: its
batch norm, folded into them. biases: biases in integers, and moved there before. numbers: what no
integers can be made of. proof: both models say the same; outputs: what they give as a whole.
report: what a conversion cost.
"""
