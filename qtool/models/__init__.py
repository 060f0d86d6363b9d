"""Float networks; they know nothing of quantization."""
