"""The integer model: codes, scales and biases instead of latent weights.

layers: exact integers. relu: ReLUs that round. exact: float32 arithmetic without shortcuts.
file: the model in safetensors.
"""
