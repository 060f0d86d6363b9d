"""Fake-quantized model and loaders in, trained model out."""
