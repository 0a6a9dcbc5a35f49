"""Wanted state: what should be on this node, read from a directory or a cluster, planned, carried out, reported."""
