"""A release of a Workspace as what other systems read: Kubernetes objects, a compose file, llm-d values. Pure."""
