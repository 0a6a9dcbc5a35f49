"""Wanted state from a Kubernetes API server, and this node's report to it."""
