"""Fake-quantized model in, integer model out.

to_integer: swaps layers and ReLUs. standing: the quantizers at call sites; sites: what becomes of
those. parts: codes, scales and bias of a layer; fold_batch_norm: its batch norm, folded into them;
norms: norms that cannot be. biases: biases in integers, and moved there before. numbers: what no
integers can be made of. proof: both models say the same; compared: layer by layer and site by site;
difference: within what bounds; outputs: what they give as a whole; thresholds: whether values at
those make them differ. report: what a conversion cost.
"""
