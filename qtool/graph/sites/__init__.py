"""Sites: numbered calls of functions in a model's blocks, what they compute, and what stands there.

call_sites: the names of such calls; functions: those of what they call; facts: what their arguments
say. value_graph: what they read and made; value_tape: records one pass, in a value_mode. frames:
modules that stand at such calls; running: who calls what meanwhile; counted: which paths were
recorded; swapped_classes: of blocks that say that they run; late_hooks:
hooks that are no part of the network.
"""
