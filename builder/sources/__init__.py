"""Model sources: one interface, and a module for each kind."""
