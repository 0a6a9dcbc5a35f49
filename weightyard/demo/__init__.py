"""Real and synthetic small models for the demonstration, the benchmarks and the tests; and the demonstration itself.

No node or builder needs it in production, and no other module of the package imports it.
"""
