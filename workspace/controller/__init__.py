"""The Workspace controller: a pure reconcile, and thin handlers that observe the cluster and execute decisions."""
