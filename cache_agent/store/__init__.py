"""What is on this node's disk: files, models, partial downloads, the ledger. Knows no network."""
