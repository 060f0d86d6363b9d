"""Bits under a budget: what each layer's width costs, and which widths together cost the least.

subject: a recipe, its data and its network with weights. costs: bytes, bits and bit-operations of
its layers. sensitivity: what each width of each layer does to loss and output; rounded: weights at
a width. choose: the integer programme. budget: widths within a limit; by_file: one that only a file
tells; search: the smallest file that is accurate enough. told: all of it as results; story: from a
recipe to a page. chosen: widths that are chosen before a training, and kept; converted: before a
conversion.
"""
