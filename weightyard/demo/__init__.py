"""What the demonstration, the benchmarks and the tests run on: a real small model, synthetic ones, the demo itself.

Nothing here is needed by a node or a builder in production, and no other module of the package imports it.
"""
