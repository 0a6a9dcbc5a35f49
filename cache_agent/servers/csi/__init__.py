"""The CSI node driver `cache.weightyard.dev`: pods get a model as an inline read-only volume."""
