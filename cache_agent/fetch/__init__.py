"""Gets files from sources into the store: a pure planner and a pool of threads that carries its plan out."""
