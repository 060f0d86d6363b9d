"""Fake-quantized model in, integer model out."""
