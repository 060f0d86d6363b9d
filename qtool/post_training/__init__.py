"""What improves a prepared, calibrated network without training it.

improve: where it begins. methods: what there is to choose from, and what each is given. default:
the best of what costs seconds. begin: what all of them begin with: ranges that are not said; before
that, equalization: channels in front of depthwise layers get one size.
activation_ranges: by what their readers give. walk: the layers of a network in order, each with the
input that the quantized layers before it make. outputs: what the float network's layers give, to
compare with. in_order: what is done to each of them there: weight_scales: by the error of what the
layer gives; coordinates: weights aimed at float outputs, codes and scales by coordinate descent;
bias_correction: the mean of a layer's output is the float network's again; below_saturation: codes
of which no two neighbours saturate.

by_layer: rounding chosen layer by layer, by gptq (errors that make up for each other) or adaround
(learned, by soft_rounding). patches: a layer as a product of matrices; seen: what it reads, and
should make; following: what comes of that at once. held_codes: codes that were chosen, held in the
weights. by_block: brecq, block by block; blocks: which there are; brecq: learning one. kept: what
was done so far, in a file; progress: how far that is.
"""
