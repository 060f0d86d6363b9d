"""The integer model: codes, scales and biases instead of latent weights.

converted: what is known of it. layer: exact integers; layers: their kinds. relu: ReLUs that round.
site_specs, at_site: what stands at call sites; joins, depthwise: sums, products, poolings and the
like there, in codes. exact: float32 arithmetic without shortcuts. file: the model in safetensors,
in a format, read without torch.
"""
