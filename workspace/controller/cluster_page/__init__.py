"""The cluster's page: rows for Workspaces and their rollouts, served to whom the API server admits."""
