"""Quantizes checkpoints: formats, engines and quality measures. No network access."""
