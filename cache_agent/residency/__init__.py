"""The memory tier: measures how much of a model is in the page cache, and reads it in."""
