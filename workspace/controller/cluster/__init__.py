"""What the controller asks and tells the API server, and asks registries; what it remembers of the answers."""
