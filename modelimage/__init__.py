"""What a model image is: digests, references, media types, record, recipe, manifests, layout, registry client.

This package knows nothing of building, caching or Kubernetes; every other package may import it.
"""
