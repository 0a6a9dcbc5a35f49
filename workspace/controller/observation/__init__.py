"""Facts of the objects that the controller observes, and what Events tell of them. Pure."""
