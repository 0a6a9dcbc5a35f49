"""Where bytes come from when the disk doesn't have them: one small interface, one module per kind of place."""
