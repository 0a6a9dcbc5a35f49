"""The controller of Workspaces: a pure reconcile, and thin handlers that observe and carry out."""
