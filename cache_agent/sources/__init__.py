"""Sources of chunks that aren't on disk: one small interface, one module per kind of source."""
