"""Probes: prompts with expected answers, by which a new version has to prove itself before it gets requests."""
