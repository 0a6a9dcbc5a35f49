"""The process itself: its queue and workers, the events of its log, its metrics and health."""
