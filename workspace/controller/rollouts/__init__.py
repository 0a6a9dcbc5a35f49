"""Rollouts of new versions: steps, comparisons, and how requests reach each version. Pure."""
