"""Where the quantizers of activations stand: which values get one, of how many bits, on what grid.

relu_outputs: at the outputs of ReLUs, as papers have it. placement: what is decided for each value
of a network. rules: how that is decided for place: every_value. wanted: what a recipe wants of
layers and values. chains: the graph of values, as call sites see it. integers: which operators
compute in integers. values: which values get a quantizer, and of what kind. groups: values that
share a grid. attach: the decisions, made part of a model. of_state: which place a state_dict is of.
"""
