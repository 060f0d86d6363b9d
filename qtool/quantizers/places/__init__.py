"""Where the quantizers of activations stand: which values get one, of how many bits, on what grid.

relu_outputs: at the outputs of ReLUs, as papers have it. placement: what is decided for each value
of a network. rules: by which rules. attach: the decisions, made part of a model.
"""
