"""The integer model: codes, scales and biases instead of latent weights.

layers: exact integers. relu: ReLUs that round. file: the model in safetensors.
"""
