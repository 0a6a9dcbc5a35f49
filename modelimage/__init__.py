"""The model image format: digests, references, media types, record, recipe, manifests, layout, registry client.

Every other package may import this one; it must not depend on building, caching or Kubernetes.
"""
