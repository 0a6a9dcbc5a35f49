"""Wire types of the agent's control API: pydantic only, importable by anyone."""
