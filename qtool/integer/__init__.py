"""The integer model: codes, scales and biases instead of latent weights."""
