"""A small proxy that holds requests while no server runs, and hands them on as soon as one does."""
