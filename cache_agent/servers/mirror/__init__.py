"""The registry mirror: a read-only `/v2/` that serves container runtimes from this node's cache, or from upstream."""
