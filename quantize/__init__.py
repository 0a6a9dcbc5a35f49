"""Tensors in, quantized tensors out: checkpoint formats, engines and quality measures. No network."""
