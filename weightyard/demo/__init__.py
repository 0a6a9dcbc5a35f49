"""The demonstration, and the small real model that it, the benchmarks and the tests use.

No node or builder needs it in production, and no other module of the package imports it.
"""
