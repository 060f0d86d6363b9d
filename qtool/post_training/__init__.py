"""What improves a prepared, calibrated network without training it.

improve: where it begins. methods: what there is to choose from, and what each is given. default:
the best of what costs seconds. walk: the layers of a network in order, each with the input that the
quantized layers before it make. outputs: what the float network's layers give, to compare with.
bias_correction: the mean of a layer's output is the float network's again.
"""
