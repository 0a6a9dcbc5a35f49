"""The peer tier: nodes that pull the same model split its chunks and serve each other. See docs/peers.md."""
