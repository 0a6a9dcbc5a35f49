"""Reads the desired state from a Kubernetes API server and writes this node's report to it."""
