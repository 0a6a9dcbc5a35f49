"""The store on this node's disk: files, models, partial downloads, the ledger. No network access."""
