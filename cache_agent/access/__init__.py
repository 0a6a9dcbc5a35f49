"""Who may have what: access is proved with the caller's own credentials before a cached byte leaves the store."""
