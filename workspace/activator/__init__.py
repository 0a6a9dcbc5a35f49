"""A small proxy that holds requests while no server runs, and forwards them once one is ready."""
