"""The memory tier: how much of a model is in the page cache, and bringing it there."""
