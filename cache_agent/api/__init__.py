"""The control API's wire types and client, and the Kubernetes documents. Must not import the agent's inside."""
