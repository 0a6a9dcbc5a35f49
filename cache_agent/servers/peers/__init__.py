"""The server for peers: chunks of files that this node holds or is downloading. Read-only."""
