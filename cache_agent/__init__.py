"""The node agent: keeps verified weight files in a tiered cache. Builder and workspace import only `api`."""
