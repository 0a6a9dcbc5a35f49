"""Loops beside the passes over Workspaces: what they read from servers and Prometheus, the next pass acts on."""
