"""KAITO's documents as Workspaces: what its presets and instance types are here, and what has no equivalent."""
