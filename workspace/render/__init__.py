"""Renders a release of a Workspace for other systems: Kubernetes objects, a compose file, llm-d values. Pure."""
