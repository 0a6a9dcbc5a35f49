"""The registry mirror: a read-only `/v2/` that gives container runtimes what this node has, or fetches it."""
