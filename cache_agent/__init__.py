"""The node daemon: keeps weight files verified in a tiered cache. Others may import `api` and `client` only."""
