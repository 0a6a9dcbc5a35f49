"""Where checkpoints come from: one interface, and a module for each kind of place."""
