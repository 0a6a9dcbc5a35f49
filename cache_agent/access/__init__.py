"""Access control: a caller proves access with its own credentials before a cached byte is served."""
