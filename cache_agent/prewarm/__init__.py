"""Pre-warming: reads the desired state from a directory or a cluster, plans, carries the plan out and reports."""
