"""The check of a file in the runtime that it was written for.

measure: all of it, and its report. gate, agreement, control, verdict, site_codes, unchanged: that
the file computes what the integer model does; constants: what a runtime unpacks. islands, why_slow,
by_design: what runs in integers, and why the rest does not. latency, in_turn: how fast;
float_model, unrounded: beside which network in float. lint: what is wrong with what a file says of
itself; stored_weights: where each layer's weight stands in it; damage: whether it is what was
written. ends: what stands before and behind the network; other_size: images of another size.
"""
