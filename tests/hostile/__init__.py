"""Whole programs under hostile input: what they use at most."""
